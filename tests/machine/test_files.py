from pathlib import Path

import pytest

from demr.machine.files import atomic_path


def test_atomic_path(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.json"
    with atomic_path(target) as path:
        path.write_text("old")
    assert target.read_text() == "old"
    assert target.stat().st_mode & 0o777 == 0o644

    def fail() -> None:
        with atomic_path(target) as path:
            path.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert list(target.parent.iterdir()) == [target]
