#!/bin/sh
# Makes ready the text that the default model is trained on: prepare.sh DATA FOLDER [OPTIONS of dragoman-export prepare]
#
# DATA holds
#   tatoeba/{fra,deu,spa}-eng.zip          pairs of tatoeba.org, from https://www.manythings.org/anki/
#   l10n/en-{fr,de,es}.permissive.zip      pairs of translated software and manuals, English in the first column
#   tatoeba-laser-test/tatoeba.*           the test set of https://github.com/facebookresearch/LASER, kept out
# and eflomal (pip install eflomal) aligns the words. To go on from the model there is, add --tokenizer-from models/default.
set -eu
recipe=$(dirname "$0")
data=$1 folder=$2
shift 2
for test in "$data"/tatoeba-laser-test/tatoeba.*; do
    set -- "$@" --held-out "$test"
done
for pair in en-fr=fra en-de=deu en-es=spa; do
    languages=${pair%=*}
    set -- "$@" \
        --pair "$languages=$data/tatoeba/${pair#*=}-eng.zip" \
        --pair "$languages=$data/l10n/$languages.permissive.zip" \
        --pair "$languages=$recipe/phrasebook.tsv"
done
exec dragoman-export prepare "$folder" "$@" --file-weight "$recipe/phrasebook.tsv=6" \
    --development-share 0.005 --changed-share 0.2 --vocabulary-size 10000 --align
