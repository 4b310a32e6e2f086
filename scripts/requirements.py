"""Print the package's requirements, one a line: required ones and the given extras'."""

import pathlib
import sys
import tomllib

project = tomllib.loads(pathlib.Path("pyproject.toml").read_text("utf-8"))["project"]
extras = project["optional-dependencies"]
wanted = list(project["dependencies"])
pending = sys.argv[1:]
while pending:
    for requirement in extras[pending.pop()]:
        if requirement.startswith("abyssal["):
            pending += requirement.removeprefix("abyssal[").rstrip("]").split(",")
        else:
            wanted.append(requirement)
print("\n".join(dict.fromkeys(wanted)))
