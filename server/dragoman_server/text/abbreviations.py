"""Abbreviations by language: folded, without their last full stop.

A word that often ends a sentence, such as "no", stands only among those that a number has to follow. Single capital
letters and letters with full stops between them, such as "U.S.", are abbreviations in any language and stand nowhere.
"""

from collections.abc import Mapping


def _words(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


# Never the end of a sentence.
ABBREVIATIONS: Mapping[str, frozenset[str]] = {
    "ca": _words("av c dr dra excm il·lm núm p pàg prof sr sra srs sta sto tel vg"),
    "cs": _words(
        "a apod atd bc c č čj doc dr fr hl ing k kap kpt mgr mj mjr mudr např obr odst p pan par phdr plk por prof",
        "př red resp rndr s sl str sv tj tř tzn tzv ul v z zejm",
    ),
    "da": _words(
        "adr bl afd ca dr eks evt f fhv fig frk hr inkl jf kap kl kr m max mfl mht min mv nr o op osv p pga pr prof",
        "red s sen skt stk str t tlf u vedr",
    ),
    "de": _words(
        "a abb abs abt allg anm aufl b bd bes bspw bzgl bzw c ca chr co d dgl dipl dr e engl entspr ev evtl exkl f fa",
        "fam fr franz frl g geb gebr gegr gem ges gest ggf ggü h hl hr hrn hrsg i ing inkl insb int jh jun k kap kath",
        "kgl l lat lt m max med mind min mio mr mrd mrs ms mt mwst n nr o op p pkt pl prof r rd red rel s sel sen sog st",
        "std str t tel u ung urspr usf v verf verh vgl vs w x y z zb zit zt ztr zzgl",
    ),
    "en": _words(
        "adj adm al approx asst atty aug ave bldg blvd brig bros bull ca capt cf cmdr co col comdr corp cpl ct dept",
        "dist dr drs ed eds eq esp est ex exec feb fr ft fwd gen gov govt hon hosp hr hrs hwy inc incl insp jr lt ltd",
        "maj max messrs mfr mgr min mlle mme mr mrs ms msgr mt mts mx natl nos oct op ord pfc ph pl pp pres prof pseud",
        "pvt rd rep reps resp rev rs rt sen sens sept sgt sr st ste supt surg univ vs viz vol vols",
    ),
    "es": _words(
        "admón almte apdo aprox arz av avda bco bibl c cía cnel col comte coord d dña dpto dr dra dras dres ed ee ej",
        "exc excma excmo fdo fig fr gob gral grs hnos ibíd ing izq j jr lcda lcdo lda ldo lic ltda máx mín mons mtro",
        "mtra n.º ntra ntro núm p pág págs pdte pj pp prof profa prov ptas pza rdo rte ss sr sra sras sres srta srtas",
        "st sta sto tel teniente tte ud uds uu vd vda vds vgr vs",
    ),
    "fi": _words("ent esim huom ha k ks ko m mr mrs n nk nro ns os p pj prof puh s t toim v"),
    "fr": _words(
        "ap apr art av bd bld boul c.-à-d cf ch chap cie col coll coord dép dir div dr drs éd env ex fasc fém fig gal",
        "hab ibid inc ind inf j.-c jr lib lt ltd m mar max me mes mgr mgrs min mlle mlles mm mme mmes mr mrs mss n nb",
        "no nos obs p par pl pp pr prés r réf rem rev s sect st ste stes suiv suppl sup sv tél trad univ v vs",
    ),
    "it": _words(
        "abb all art arch avv c ca cap cav cd cf comm co d dir dott dott.ssa dr ecc ed es fig geom gent gg ill ing jr",
        "min mons n nn nr on op p pag pagg par pp pres prof prof.ssa prov ps rag s sec seg segg sig sig.ra sig.na sigg",
        "spett ss st tel v vol voll vs",
    ),
    "nl": _words(
        "a afb art b bijv blz bv ca d dhr div dr drs e.d enz evt excl fam fig geb gem h hr incl ing ir jhr jr kol m max",
        "mej mevr min mr mrs mw n nl nr nrs o o.a o.l.v p par prof resp s sen sr st t tel v vgl vnl z zgn",
    ),
    "pl": _words(
        "al ang bp ca doc dr dyr godz gen hab im in inż jw k kard kpt ks lek łac m mec mgr min mjr n nb np nr o ob ok os",
        "p pl płk pn por pow prof przyp pt r ratown red rys s str sw św t tel tj tys tzn tzw ul ur v woj ww wyd z zob zw",
    ),
    "pt": _words(
        "alm apto arq art av bel c ca cap cel cf cia col coord d dep des dir dr dra dras drs ed eng enga ex exa exmo",
        "exma fig fl gal gen gov ilmo inc jr lda lic ltda máx mín mons n núm nº obs p pág págs pe pg pp pref pres prof",
        "profa r rel rep rev s sec sen sr sra sras sres srs srta st sta sto tel ten v vol vs",
    ),
    "ru": _words(
        "акад букв бул вкл г гл гор гр гос д доп доц др ед жен зав зам зап им инж исп кв кн коп корп куб м макс мин",
        "млн млрд муж наб напр науч нем о обл обр оз отв п пер пл пос пр просп проф р ред рис род св сев см соч сост ср",
        "стр т тел тов тт тыс ул ум уч чел шт",
    ),
    "sv": _words(
        "a adr avd bl ca dr dvs eg ekon ev ex f fig forts fr fröken hr ing inkl jfr jur k kap kl kr m max med mfl mm n",
        "nr o osv p prof red ref resp s sid sk st t tel tex tr u uppl utg v vd vol äv",
    ),
    "uk": _words(
        "акад вул г гл гр д доц див ім ін кв м напр о обл п пл пор пров просп проф р рис рр с св см ст стор т тис"
    ),
}

# Not the end of a sentence where a number follows.
COUNTED: Mapping[str, frozenset[str]] = {
    "ca": _words("art cap fig vol gen febr set oct nov des"),
    "cs": _words("č čl odst"),
    "da": _words("art jan feb mar apr jun jul aug sep sept okt nov dec"),
    "de": _words("art ziff pos vers jan jän feb febr mär apr jun jul aug sep sept okt nov dez"),
    "en": _words("apr app art ch chap dec fig figs jan jul jun mar no nov p par sec sect sep ver vv"),
    "es": _words("abr ago art cap dic ene feb fol jul jun mar may no nov oct sep sept vol"),
    "fr": _words("avr déc févr janv juil nov oct sec sept vol"),
    "it": _words("apr ago dic feb gen giu lug mag mar nov ott set sett"),
    "nl": _words("apr aug dec feb jan jul jun mrt nov okt sep sept"),
    "pl": _words("art rozdz"),
    "pt": _words("abr ago cap dez fev jan jul jun mai mar nov out set"),
    "ru": _words("ст"),
    "sv": _words("apr art aug dec feb jan nov okt sept"),
}

# Where a number with a full stop is an ordinal.
LANGUAGES_WITH_ORDINALS = _words("bs cs da de et eu fi hr hu is lt lv nb nn no pl sk sl sr tr")

# Languages that have the abbreviations of another.
RELATED: Mapping[str, str] = {"nb": "da", "nn": "da", "no": "da", "sk": "cs", "gl": "pt", "be": "ru", "bg": "ru"}
