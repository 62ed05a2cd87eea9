from agelib.archives import describe


def test_descriptions_say_what_the_licence_allows():
    table = describe(["wiki", "utkface"])
    assert table.index.tolist() == ["wiki", "utkface"]
    assert table["licence"].str.contains("research only").all()
    assert table["home"].str.startswith("https://").all()
