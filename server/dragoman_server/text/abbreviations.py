"""Abbreviations by language: folded, without their last full stop.

A word that often ends a sentence, such as "no", stands only among those that a number has to follow. Single capital
letters and letters with full stops between them, such as "U.S.", are abbreviations in any language and stand nowhere.
"""

from collections.abc import Mapping


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Never the end of a sentence.
ABBREVIATIONS: Mapping[str, frozenset[str]] = {
    "ca": _words("av c dr dra excm il·lm núm p prof pàg sr sra srs sta sto tel vg"),
    "cs": _words(
        "a apod atd bc c doc dr fr hl ing k kap kpt mgr mj mjr mudr např obr odst p par phdr plk por prof př red resp",
        "rndr s sl str sv tj tzn tzv tř ul v z zejm č čj",
    ),
    "da": _words(
        "adr afd bl ca dr eks evt f fhv fig frk hr inkl jf kap kl kr m mfl mht mv nr o osv p pga pr prof red s sen",
        "skt stk str t tlf u vedr",
    ),
    "de": _words(
        "a abb abs abt allg anm aufl b bd bes bspw bzgl bzw c ca chr co d dgl dipl dr e engl entspr ev evtl exkl f fa",
        "fam fr franz frl g geb gebr gegr gem ges gest ggf ggü h hl hr hrn hrsg i ing inkl insb int jh jun k kap kath",
        "kgl l lat lt m med mind mio mr mrd mrs ms mt mwst n nr o p pkt pl prof r rd red rel s sel sen sog st std str",
        "t tel u ung urspr usf v verf verh vgl vs w x y z zb zit zt ztr zzgl",
    ),
    "en": _words(
        "adj adm al approx asst atty aug ave bldg blvd brig bros bull ca capt cf cmdr co col comdr corp cpl ct dept",
        "dist dr drs eq esp est ex exec fr ft fwd gen gov govt hon hosp hwy inc incl insp jr lt ltd maj messrs mfr",
        "mgr mlle mme mr mrs ms msgr mt mts mx natl nos op ord pfc ph pl pp pres prof pseud pvt rd rep reps resp rev",
        "rs rt sen sens sgt sr st ste supt surg univ viz vol vols vs",
    ),
    "es": _words(
        "a admón almte apdo aprox arz av avda bco bibl c cnel col comte coord cía d dpto dr dra dras dres dña ed ee ej",
        "exc excma excmo fdo fig fr gob gral grs hnos ibíd ing izq j jr lcda lcdo lda ldo lic ltda mons mtra mtro máx",
        "ff jj ll mín n.º ntra ntro núm oo p pdte pj pp prof profa prov ptas pza pág págs rdo rte sr sra sras sres",
        "srta srtas ss st sta sto tel tte ud uds uu vd vda vds vgr vs",
    ),
    "fi": _words("ent esim huom k ko ks m mr mrs n nk nro ns os p pj prof puh s t toim v"),
    "fr": _words(
        "ap apr av bd bld boul c.-à-d cf ch chap cie col coll coord dir div dr drs dép env ex fasc fig fém gal hab",
        "ibid inc ind inf j.-c jr lib lt ltd m mar me mes mgr mgrs mlle mlles mm mme mmes mr mrs mss n nb no nos obs",
        "p par pl pp pr prés r rem rev réf s sect st ste stes suiv sup suppl sv trad tél univ v vs éd",
    ),
    "it": _words(
        "abb all arch art avv c ca cap cav cd cf co comm d dir dott dott.ssa dr ecc ed es fig gent geom gg ill ing jr",
        "mons n nn nr on op p pag pagg par pp pres prof prof.ssa prov ps rag s sec seg segg sig sig.na sig.ra sigg",
        "spett ss st tel v vol voll vs",
    ),
    "nl": _words(
        "a afb art b bijv blz bv ca d dhr div dr drs e.d enz evt excl fam fig geb gem h hr incl ing ir jhr jr kol m",
        "mej mevr mr mrs mw n nl nr nrs o o.a o.l.v p par prof resp s sen sr st t tel v vgl vnl z zgn",
    ),
    "pl": _words(
        "al ang bp ca doc dr dyr gen godz hab inż jw k kard kpt ks lek m mec mgr min mjr n nb np nr o ob ok os p pl",
        "pn por pow prof przyp pt płk r ratown red rys s str sw t tel tj tys tzn tzw ul ur v woj ww wyd z zob zw łac",
        "św",
    ),
    "pt": _words(
        "alm apto arq art av bel c ca cap cel cf cia col coord d dep des dir dr dra dras drs ed eng enga ex exa exma",
        "exmo fig fl gal gen gov ilmo inc jr lda lic ltda mons máx mín n nº núm obs p pe pg pp pref pres prof profa",
        "pág págs r rel rep rev s sec sen sr sra sras sres srs srta st sta sto tel ten v vol vs",
    ),
    "ru": _words(
        "акад бул вкл г гл гор гос гр д доп доц др ед жен зав зам зап им инж исп кв кн коп корп куб м млн млрд наб",
        "напр науч нем о обл обр оз отв п пер пл пос пр просп проф р ред св сев см сост соч ср стр т тел тов тт тыс",
        "ул уч чел шт",
    ),
    "sv": _words(
        "a adr avd bl ca dr dvs eg ekon ev ex f fig forts fr hr ing inkl jfr jur k kap kl kr m mfl mm n nr o osv p",
        "prof red ref resp s sid sk st t tel tex tr u uppl utg v vd vol äv",
    ),
    "uk": _words(
        "акад вул г гл гр д див доц кв м напр о обл п пл пор пров просп проф р рр с св см ст стор т тис ім ін",
    ),
}

# Not the end of a sentence where a number follows.
COUNTED: Mapping[str, frozenset[str]] = {
    "ca": _words("art cap des febr fig gen nov oct set vol"),
    "cs": _words("čl"),
    "da": _words("apr art aug dec feb jan jul jun mar max min nov okt sep sept"),
    "de": _words("apr art aug dez feb febr jan jul jän max min mär nov okt pos sep sept vers ziff"),
    "en": _words(
        "app apr art ch chap dec ed eds feb fig figs jan jul jun mar max min no nov oct p par sec sect sep sept ver",
        "vv",
    ),
    "es": _words("abr ago art cap dic ene feb fol jul jun mar may no nov oct sep sept vol"),
    "fr": _words("art avr déc févr janv juil max min nov oct sec sept vol"),
    "it": _words("ago apr dic feb gen giu lug mag mar min nov ott set sett"),
    "nl": _words("apr aug dec feb jan jul jun max min mrt nov okt sep sept"),
    "pl": _words("art rozdz"),
    "pt": _words("abr ago dez fev jan jul jun mai mar nov out set"),
    "ru": _words("макс мин рис ст"),
    "sv": _words("apr art aug dec feb jan max min nov okt sept"),
    "uk": _words("рис"),
}

# Where a number with a full stop is an ordinal.
LANGUAGES_WITH_ORDINALS = _words("bs cs da de et eu fi hr hu is lt lv nb nn no pl sk sl sr tr")

# Languages that have the abbreviations of another.
RELATED: Mapping[str, str] = {"nb": "da", "nn": "da", "no": "da", "sk": "cs", "gl": "pt", "be": "ru", "bg": "ru"}
