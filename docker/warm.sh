#!/bin/sh
# Runs each compiled function once on tiny inputs, so that its machine code lies in the image, and checks the installation.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
text=examples/world/text

python - <<'PY'
from importlib.metadata import packages_distributions
for name in ("queries", "pipeline", "dedup", "model"):
    owners = set(packages_distributions()[name])
    assert owners == {"webimagetext"}, f"the package {name} belongs to {owners}"
PY
python - > "$work/captions.tsv" <<'PY'
print("url\ttext")
for n, text in enumerate(("A dog and a cat on the red sofa", "Zwei HUNDE – \u201ein M\u00fcnchen\u201c", "ﬁve cafe\u0301s, don't",
                          "\u72ac\u3068\u732b", "The  History of art &amp; science <b>in</b> the 19th century.")):
    print(f"http://example.org/{n}.jpg\t{text}")
PY
wit queries --wikipedia "$text/enwiki-cut.xml.bz2" --pageviews "$text/pageviews-201604-user.bz2" --size 2000 \
    --min-count 20 --out "$work/queries" --quiet
wit candidates --table "$work/captions.tsv" --out "$work/candidates" --quiet
for matching in clean metaclip; do
    wit select --candidates "$work/candidates" --queries "$work/queries" --matching "$matching" --out "$work/$matching" --quiet
done
mkdir "$work/pictures"
python - "$work/pictures" <<'PY'
import sys
from PIL import Image
for n in range(3):
    Image.radial_gradient("L").rotate(30 * n).save(f"{sys.argv[1]}/{n}.png")
PY
wit dedup embed --images "$work/pictures" --out "$work/embeddings" --quiet
for index in exact ivf; do
    wit dedup search --train "$work/embeddings" --eval "$work/embeddings" --index "$index" --out "$work/$index" --quiet
    wit dedup groups --train "$work/embeddings" --threshold 0.9 --index "$index" --out "$work/$index-groups" --quiet
done
