from agelib.archives import describe, find_sha256


def test_descriptions_say_what_the_licence_allows():
    table = describe(["wiki", "utkface"])
    assert table.index.tolist() == ["wiki", "utkface"]
    assert table["licence"].str.contains("research only").all()
    assert table["home"].str.startswith("https://").all()


def test_a_checksum_is_found_among_those_of_other_files():
    sums = "aa  other_wiki_crop.tar\n\nbb *./wiki_crop.tar\ncc  old/wiki_crop.tar\n<html>\n"
    assert find_sha256("wiki_crop.tar", sums) == ("sha256", "bb")
    assert find_sha256("imdb_crop.tar", sums) is None
