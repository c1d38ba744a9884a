"""Stanford Online Products and In-Shop Clothes: what retrieval scores of them."""

from pathlib import Path

from mimbench.data.contents import QueryGallery
from mimbench.data.listed import listed, read_fields, read_lines
from mimbench.data.matfiles import numbers
from mimbench.data.sets import PublishedSet
from mimbench.system.errors import UserError

INSHOP_LISTS = (
    "Eval/list_eval_partition.txt",
    "list_eval_partition.txt",
    "Anno/list_eval_partition.txt",
)


def read_sop(folder: Path) -> QueryGallery:
    """Return the test products, each image against all others."""
    path = folder / "Ebay_test.txt"
    rows = read_fields(path, 4)[1:]
    products = numbers([row[1] for row in rows], path)
    kinds = sorted(set(products))
    place = {number: i for i, number in enumerate(kinds)}
    names = [row[3] for row in rows]
    images = listed(folder, names, [place[p] for p in products], [f"product {k}" for k in kinds])
    return QueryGallery(queries=images, gallery=images)


def read_inshop(folder: Path) -> QueryGallery:
    """Return the query and gallery parts."""
    path = next((folder / p for p in INSHOP_LISTS if (folder / p).is_file()), None)
    if path is None:
        raise UserError(f"{folder} has no list_eval_partition.txt, as in {INSHOP_LISTS[0]}")
    rows = [line.split() for line in read_lines(path)[2:]]
    if any(len(row) != 3 for row in rows):
        raise UserError(f"{path}: expected lines 'image item part' below two head lines")
    items = sorted({row[1] for row in rows if row[2] != "train"})
    place = {name: i for i, name in enumerate(items)}
    root = folder / "Img" if (folder / "Img").is_dir() else folder
    queries, gallery = (
        listed(root, [r[0] for r in mine], [place[r[1]] for r in mine], items)
        for mine in ([r for r in rows if r[2] == part] for part in ("query", "gallery"))
    )
    return QueryGallery(queries=queries, gallery=gallery)


SETS = {
    "sop": PublishedSet(
        title="Stanford Online Products",
        read=read_sop,
        marks=("Ebay_test.txt",),
        counts={"images": 60_502, "classes": 11_316},
        obtain=(
            "# Stanford_Online_Products.zip: https://cvgl.stanford.edu/projects/lifted_struct/\n"
            "# -> FOLDER/Ebay_test.txt, FOLDER/<kind>_final/"
        ),
        folders=("Stanford_Online_Products", "SOP", "online_products"),
    ),
    "inshop": PublishedSet(
        title="In-Shop Clothes",
        read=read_inshop,
        marks=INSHOP_LISTS,
        counts={"queries": 14_218, "gallery": 12_612},
        obtain=(
            "# In-shop Clothes of DeepFashion: http://mmlab.ie.cuhk.edu.hk/projects/DeepFashion.html\n"
            "# -> FOLDER/Img/img/, FOLDER/Eval/list_eval_partition.txt"
        ),
        folders=("In-shop", "InShop", "in-shop", "inshop_clothes"),
    ),
}
