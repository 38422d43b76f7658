"""The shipped access control of ClickHouse (include/sql/clickhouse/access) in the form of a users file.

The embedded server has nowhere to keep what CREATE makes (clickhouse-local of ClickHouse 26.9: "no writeable access
storage"), and the image of the compose file reads users from a file. So both get from here what the SQL says, and what
a person applies to a server of their own is what every test runs under.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

from stack.errors import StackError
from stack.state import CLONE

ACCESS = CLONE / "include" / "sql" / "clickhouse" / "access"
# The user of each role, everywhere in this project.
ROLES = {"coldchain": "coldchain_offload", "coldchain_validator": "coldchain_validate"}
_ALTER = re.compile(r"ALTER (SETTINGS PROFILE|ROLE) (\w+) SETTINGS\s+(.+)", re.DOTALL)
_GRANT = re.compile(r"((?:GRANT|REVOKE) .+) (?:TO|FROM) (\w+)")
_SETTING = re.compile(r"(\w+) = '?(\w+)'?(?: MIN (\d+) MAX (\d+))?(?: (CONST|CHANGEABLE_IN_READONLY))")
_PROFILE = re.compile(r"(?:INHERIT|PROFILE) '(\w+)'")


@dataclass(slots=True)
class Access:
    """Profiles as XML by name; the profiles and grants of each role."""

    profiles: dict[str, ET.Element] = field(default_factory=dict)
    role_profiles: dict[str, list[str]] = field(default_factory=dict)
    grants: dict[str, list[str]] = field(default_factory=dict)

    def profiles_of_users(self) -> ET.Element:
        """Return all profiles, and one for each role that inherits those of the role: a user of a file has one."""
        together = ET.Element("profiles")
        together.extend(self.profiles.values())
        for role, inherited in self.role_profiles.items():
            _inherit(ET.SubElement(together, role), inherited)
        return together


def read_access(folder: Path = ACCESS, *, extended: bool = True) -> Access:
    """Read the shipped statements.

    Args:
        folder: holds the files.
        extended: whether the server also knows the settings of 030.

    Raises:
        StackError: a statement is of none of the forms that the folder uses.
    """
    access = Access()
    for path in sorted(folder.glob("*.sql")):
        if not extended and path.name.startswith("030_"):
            continue
        text = re.sub(r"^\s*--.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for statement in filter(None, map(str.strip, text.split(";"))):
            _apply(access, statement)
    return access


def user(
    name: str, profile: str, grants: Sequence[str] | None, *, secret: ET.Element, networks: Sequence[str]
) -> ET.Element:
    """Return a user; without a list of grants it may do anything."""
    made = ET.Element(name)
    made.append(secret)
    addresses = ET.SubElement(made, "networks")
    for address in networks:
        ET.SubElement(addresses, "ip").text = address
    ET.SubElement(made, "profile").text = profile
    ET.SubElement(made, "quota").text = "default"
    if grants is not None:
        queries = ET.SubElement(made, "grants")
        for grant in grants:
            ET.SubElement(queries, "query").text = grant
    return made


def _apply(access: Access, statement: str) -> None:
    if re.fullmatch(r"CREATE (SETTINGS PROFILE|ROLE) IF NOT EXISTS \w+", statement):
        return
    if match := _ALTER.fullmatch(statement):
        kind, name, settings = match.groups()
        parts = [part.strip() for part in settings.split(",")]
        if kind == "ROLE":
            access.role_profiles[name] = [_profile_name(part) for part in parts]
        else:
            access.profiles[name] = _profile(name, parts)
    elif match := _GRANT.fullmatch(statement):
        access.grants.setdefault(match[2], []).append(match[1])
    else:
        raise StackError(f"{statement!r} is of no form that stack/clickhouse_access.py knows: add it there.")


def _profile(name: str, parts: Sequence[str]) -> ET.Element:
    profile = ET.Element(name)
    _inherit(profile, [_profile_name(part) for part in parts if _PROFILE.fullmatch(part)])
    constraints = ET.Element("constraints")
    for part in parts:
        if _PROFILE.fullmatch(part):
            continue
        if (match := _SETTING.fullmatch(part)) is None:
            raise StackError(f"setting {part!r} of profile {name} is of no form that stack/clickhouse_access.py knows.")
        setting, value, least, most, rule = match.groups()
        ET.SubElement(profile, setting).text = value
        constraint = ET.SubElement(constraints, setting)
        if least:
            ET.SubElement(constraint, "min").text, ET.SubElement(constraint, "max").text = least, most
        ET.SubElement(constraint, "const" if rule == "CONST" else "changeable_in_readonly")
    profile.append(constraints)
    return profile


def _inherit(profile: ET.Element, names: Sequence[str]) -> None:
    for name in names:
        ET.SubElement(profile, "profile").text = name


def _profile_name(text: str) -> str:
    if (match := _PROFILE.fullmatch(text)) is None:
        raise StackError(f"{text!r} names no profile: a role of the shipped access control has profiles only.")
    return match[1]


def container_users() -> str:
    """Return the users file of the compose file's ClickHouse, 24.8: passwords come from its environment."""
    access = read_access(extended=False)
    root = ET.Element("clickhouse")
    root.append(ET.Comment(" Made by `python -m stack.clickhouse_access` from include/sql/clickhouse/access. "))
    root.append(access.profiles_of_users())
    users = ET.SubElement(root, "users")
    for name, role in ROLES.items():
        secret = ET.Element("password", from_env=f"CLICKHOUSE_{name.upper()}_PASSWORD")
        users.append(user(name, role, access.grants[role], secret=secret, networks=["::/0"]))
    ET.indent(root, "    ")
    return ET.tostring(root, encoding="unicode") + "\n"


if __name__ == "__main__":
    print(container_users(), end="")
