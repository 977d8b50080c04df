import inspect
import re

import pytest

from openklein import errors
from openklein.errors import CallerError, InvalidRequest, OpenKleinError, OperatorError, ServiceError

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, OpenKleinError)]
BRANCHES = (CallerError, ServiceError, OperatorError)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_of_its_own(cls: type[OpenKleinError]) -> None:
    assert [other for other in CLASSES if other.code == cls.code] == [cls]


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if cls is not OpenKleinError], ids=lambda cls: cls.__name__)
def test_every_error_says_whose_fault_it_is(cls: type[OpenKleinError]) -> None:
    assert sum(issubclass(cls, branch) for branch in BRANCHES) == 1


def test_the_drawn_tree_is_the_real_one() -> None:
    drawn: dict[str, str] = {}  # child: parent
    path = ["OpenKleinError"]
    for indent, name in re.findall(r"^    ([│ ]*)[├└]── (\w+)", errors.__doc__ or "", re.MULTILINE):
        path[len(indent) // 4 + 1 :] = [name]
        drawn[name] = path[-2]
    assert drawn == {cls.__name__: cls.mro()[1].__name__ for cls in CLASSES if cls is not OpenKleinError}


@pytest.mark.parametrize("cls", InvalidRequest.__subclasses__(), ids=lambda cls: cls.__name__)
def test_a_message_is_kept(cls: type[OpenKleinError]) -> None:
    assert str(cls("what, the value, what is allowed")) == "what, the value, what is allowed"
