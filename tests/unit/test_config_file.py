"""Single settings are changed in config.toml, and nothing else is."""

from __future__ import annotations

import pytest

from faas.config_file import edited
from faas.errors import InvalidInput

WRITTEN = '# ours\nlisten = "127.0.0.1:80" # why\n\nstems = 4\n'


def test_known_lines_are_replaced_new_ones_added_and_the_others_stay() -> None:
    changed = edited(WRITTEN, {"listen": "0.0.0.0:80", "public_url": 'https://ü"x'})
    assert changed == '# ours\nlisten = "0.0.0.0:80"\n\nstems = 4\npublic_url = "https://ü\\"x"\n'
    assert edited(changed, {"listen": "0.0.0.0:80"}) == changed
    assert edited(WRITTEN, {"listen": None, "domain": None}) == "# ours\n\nstems = 4\n"
    assert edited("", {"domain": "a"}) == 'domain = "a"\n'
    assert edited("a = 1", {"b": "2"}) == 'a = 1\nb = "2"\n'


@pytest.mark.parametrize("text", ['domain = """\nlisten = 1\n"""\n', 'listen = """\n1"""\n', "listen = [\n1]\n"])
def test_values_of_several_lines_are_left_to_people(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        edited(text, {"listen": "127.0.0.1:1"})


def test_a_file_that_is_no_toml_is_said() -> None:
    with pytest.raises(InvalidInput, match=r"config\.toml"):
        edited("listen = \n", {"domain": "a"})
