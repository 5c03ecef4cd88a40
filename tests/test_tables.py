"""Label tables as people's tools write them: what is read, and what is asked about in one line."""

import pytest

from data.errors import DataError
from data.folder import Folder
from tests.folder_mini import labels_of

CAT_DOG = {"a": {"cat"}, "b": {"cat", "dog"}, "sub/c": set()}


def folder(root, text, classes=(), encoding="utf-8", strict=True):
    """A folder of three images that need not be read, with this labels.csv."""
    for path in ("a.jpg", "b.jpg", "sub/c.png"):
        (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "images" / path).touch()
    (root / "labels.csv").write_bytes(text.encode(encoding))
    if classes:
        (root / "classes.txt").write_text("\n".join(classes), encoding="utf-8")
    return Folder(root, strict)


@pytest.mark.parametrize(
    "text",
    [
        "image;label\na.jpg;cat\nb.jpg;cat,dog\nsub/c.png;\n",
        "File Name\tClasses\r\na.jpg\tcat\r\nb.jpg\tcat;dog\r\nsub/c.png\t\r\n",
        "img|tags\na|cat\nb|cat;dog\nsub/c|\n",
        "sep=;\r\nimage;label\r\na.jpg;cat\r\nb.jpg;cat|dog\r\nsub/c.png;\r\n",
        "image,labels\na.jpg,['cat']\nb.jpg,\"['cat', 'dog']\"\nsub/c.png,[]\n",
        'image,labels\na.jpg,"[""cat""]"\nb.jpg,"[""cat"",""dog""]"\nsub/c.png,"[]"\n',
        "path,labels\na.jpg,['cat']\nb.jpg,['cat' 'dog']\nsub/c.png,[]\n",  # as NumPy prints it
        "image,labels\na.jpg,cat\nb.jpg,cat,dog\nsub/c.png\n",  # commas that should be in quotes
        "a.jpg,cat\nb.jpg,cat,dog\nsub/c.png,\n",
        "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 1, 1\nsub/c.png, 0, 0\n",
        ",filename,cat,dog\n0,a.jpg,True,False\n1,b.jpg,True,True\n2,sub/c.png,False,False\n",
        "dog;cat;image_id\n0.0;1.0;a\n1.0;1.0;b\n;;sub/c\n",
        "name,width,height,cat,dog,split\na,90,70,1,0,train\nb,90,70,1,1,val\nsub/c,90,70,0,0,train\n",
        "filename,width,class,xmin\na.jpg,90,cat,3\nb.jpg,90,cat,4\nb.jpg,90,dog,9\nb.jpg,90,dog,7\nsub/c.png,90,,0\n",
        "Image Index,Finding Labels,Follow-up #,Age\na,cat,0,58\nb,cat|dog,1,58\nsub/c,,2,60\n",
        "image,class_id,class_name\na.jpg,3,cat\nb.jpg,3,cat\nb.jpg,8,dog\nsub/c.png,,\n",
        "Unnamed: 0,path,label\n0,/home/me/own/images/a.jpg,cat\n1,C:\\own\\images\\b.jpg,cat;dog\n2,data/sub/c.png,\n",
        "# made by LabelTool 3\nimage,label\na,cat\nb,cat;dog\nsub/c,\n",
        "0,a.jpg,cat\n1,b.jpg,cat;dog\n2,sub/c.png,\n",
        "Bild;Klasse;Breite\na;cat;24,5\nb;cat|dog;30,1\nsub/c;;24,5\n",
        "id,file,label_1,label_2\n7,a.bmp,cat,\n8,b.png,dog,cat\n9,sub\\c.tif,,\n",  # the images have been converted
    ],
)
def test_forms_that_are_read(tmp_path, text):
    assert labels_of(folder(tmp_path / "utf8", text)) == CAT_DOG
    assert labels_of(folder(tmp_path / "utf16", text, encoding="utf-16")) == CAT_DOG
    assert labels_of(folder(tmp_path / "listed", text, ("cat", "dog"))) == CAT_DOG


def test_classes_txt_settles_what_joins_classes_and_which_columns_count(tmp_path):
    text = "image,label\na.jpg,cat\nb.jpg,cat dog\nsub/c.png,\n"
    assert labels_of(folder(tmp_path / "words", text, ("dog", "cat"))) == CAT_DOG
    text = "image,cat,dog,is_train\na.jpg,1,0,1\nb.jpg,1,1,1\nsub/c.png,0,0,0\n"
    dataset = folder(tmp_path / "columns", text, ("cat", "dog"))
    assert labels_of(dataset) == CAT_DOG and dataset.notes == ["labels.csv: columns that are not used: is_train"]
    dataset = folder(tmp_path / "columns without any", "image,cat,dog\na,1,0\nb,1,0\n")
    assert dataset.classes == ("cat", "dog") and labels_of(dataset) == {"a": {"cat"}, "b": {"cat"}}
    dataset = folder(tmp_path / "numbers", "image,label\na,10\nb,2\nsub/c,9\n")
    assert dataset.classes == ("2", "9", "10")  # as mask values count


@pytest.mark.parametrize("top", ["_background_", "__ignore__\n_background_", "background"])
def test_what_labelme_writes_on_top_of_the_classes_is_none(tmp_path, top):
    dataset = folder(tmp_path, "image,label\na,dog\nb,cat;dog\nsub/c,\n", (top, "dog", "cat"))
    assert dataset.classes == ("dog", "cat") and dataset.n_classes == 2
    assert dataset.notes[0].endswith("is no class; the line after it counts as the first")
    with pytest.raises(DataError, match=r"classes\.txt line 2: background is no class"):
        folder(tmp_path, "a,dog\n", ("dog", "background", "cat"))


ASKED = [
    ("image,label\na,Cat\nb,cat\n", r"line 3: 'cat' and 'Cat' may be one class; if so use one spelling"),
    (
        "image,label\na,cat\nb,none\n",
        r"line 3: 'none' may mean that an image has no object; if so write nothing there, else",
    ),
    ("image,label\na,cat\nb,nan\nsub/c,NaN\n", r"line 4: 'NaN' may mean .* \(and 1 more like it\)"),
    ("image,label\na,tumour\nb,normal\n", r"'normal' may mean"),
    ("image,tumour,normal\na,1,0\nb,0,1\n", r"'normal' may mean"),
    (
        "image,label\na,cat\nb,dog\nsub/c,cat dog\n",
        r"line 4: 'cat dog' may mean cat and dog together; if so write cat;dog, else",
    ),
    ("image,label\na,cat\nb,dog\nsub/c,dog_cat\n", r"'dog_cat' may mean dog and cat together"),
    ("image,label\na,cat/dog\nb,dog\nsub/c,cat\n", r"line 2: 'cat/dog' may mean cat and dog together"),
    (
        "image,tags\na,haze sky\nb,clear sky;haze sea\nsub/c,clear sea;fog sea;fog sky\n",
        r"'clear sea' may be several classes; if so write clear;sea",
    ),
    ("a.jpg cat\nb.jpg dog\nsub/c.png cat dog\n", r"line 3: 'cat dog' may mean cat and dog together"),
    ("image,label\na,cat\nb,no cat\n", r"'no cat' may mean that an image has no object"),
    ("image,label\na,[0 1]\nb,[1 1]\n", r"'0 1' may only say"),
    ("image,label\na,0\nb,1\n", r"line 2: '0' may only say whether an object is there; if so name the column"),
    ("a,1\nb,0\n", r"'0' may only say"),
    ("image,label\na,yes\nb,no\n", r"'no' may only say"),
    ("file,region_count,region_id\na,1,0\nb,1,1\n", r"is column 'region_count' a class\? .* \(and 1 more like it\)"),
    ("image,is_train,cat\na,1,1\nb,0,0\n", r"is column 'is_train' a class\? If it is, list all classes"),
    ("image,cat,dog\na,2,1\nb,0,0\n", r"line 2: column 'cat' holds '2' where others hold 0 and 1"),
]
PROBLEMS = [
    ("image,label\na,_background_;cat\nb,_background_\n", r"line 2: _background_ is no class; leave it out"),
    ("image,label\na,__ignore__\nb,cat\n", r"line 2: __ignore__ is no class"),
    ("image,background,cat\na,1,1\nb,1,0\n", r"line 1: background is no class"),
    ("a,1,0\nb,0,1\nsub/c,0,0\n", r"line 1: which of the columns '2', '3' hold classes\? .* one of them called label"),
    ("file,kind,colour\na,cat,red\nb,dog,red\n", r"line 2: which of the columns 'kind', 'colour' hold"),
    ("file,kind,blurred\na,cat,0\nb,dog,1\nsub/c,cat,0\n", r"which of the columns 'kind', 'blurred' hold"),
    ("file,cat,dog\na,1,-1\nb,-1,1\n", r"line 2: which of the columns 'cat', 'dog' hold classes"),
    ("file,class,present\na,cat,1\na,dog,0\nb,cat,0\nb,dog,1\n", r"where column 'present' says no, does the class not"),
    ("image,label\nx1,cat\nx2,dog\n", r"labels\.csv names no image: none is called 'x1' or 'cat' \(line 2\)"),
    ("image,label\na,cat\nx1,cat\nx2,dog\nx3,dog\n", r"line 3: 'x1' is not in .*images .*\(and 2 more like it\)"),
    ("image,label\na,cat\na,cat;dog\nb,\nb,dog\n", r"line 3: image 'a' is also in line 2 \(and 1 more like it\)"),
    ("image,label\na,cat\na,\n", r"line 3: image 'a' is also in line 2"),
    ("image,label\ntrain/a.jpg,cat\nval/a.jpg,dog\n", r"line 3: image 'a' is also in line 2"),
]


@pytest.mark.parametrize(("text", "message"), ASKED + PROBLEMS)
def test_what_is_doubtful_is_asked_about_in_one_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message) as error:
        folder(tmp_path, text)
    assert str(error.value).count("labels.csv") == 1


@pytest.mark.parametrize(("text", "message"), ASKED[:-4])
def test_classes_txt_is_the_answer(tmp_path, text, message):
    classes = folder(tmp_path, text, strict=False).classes
    assert folder(tmp_path, text, classes).classes == classes


def test_classes_that_are_not_listed_are_one_problem(tmp_path):
    with pytest.raises(DataError, match="names no class; wanted"):
        folder(tmp_path, "image\na\nb\n")
    text = "image,label\na,cat\nb,dgo;bird\nsub/c,fish\n"
    with pytest.raises(DataError, match=r"line 3: class 'dgo' is not in .*classes\.txt; nor are 'bird', 'fish'$"):
        folder(tmp_path, text, ("cat", "dog"))
