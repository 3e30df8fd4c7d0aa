"""A gate as JUnit XML, which CI servers show as tests: one suite a target, one case a limit."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from compressor.gate.gate import GateResult
from compressor.report.schema import Check
from compressor.report.wording import one_line

__all__ = ["junit_xml"]


def junit_xml(result: GateResult) -> str:
    """Write a result as JUnit XML.

    A limit that is missed is a failure; one that is missed, or met, on a noisy machine while the
    gate is undecided is an error: neither passed nor failed. So is a gate that could not judge.
    Where one target is enough, what the others miss is skipped.
    """
    root = ET.Element("testsuites", name=one_line(result.name))
    for each in result.targets:
        _suite(root, f"{each.target}: {each.variant}", each.checks, result)
    if result.regression:
        _suite(root, "against the last release", result.regression, result)
    verdict = ET.SubElement(root, "testsuite", name="verdict")
    case = ET.SubElement(verdict, "testcase", classname="verdict", name=one_line(result.name))
    text = one_line("; ".join(result.lines))
    if result.outcome == "pass":
        ET.SubElement(case, "system-out").text = text
    else:
        tag = "failure" if result.outcome == "fail" else "error"
        ET.SubElement(case, tag, message=text, type=result.outcome)
    for suite in root:
        _count(suite)
    _count(root)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ET.Element, name: str, checks: tuple[Check, ...], result: GateResult) -> None:
    name = one_line(name)
    suite = ET.SubElement(root, "testsuite", name=name)
    for check in checks:
        title = f"{check.limit} {check.subject}".strip()
        case = ET.SubElement(suite, "testcase", classname=name, name=one_line(title))
        text = one_line(check.text)
        if check.noisy and result.outcome == "undecided":
            ET.SubElement(case, "error", message=f"noisy machine: {text}", type="noisy")
        elif not check.met and result.outcome == "pass":
            ET.SubElement(case, "skipped", message=f"{text}; another target is enough")
        elif not check.met:
            ET.SubElement(case, "failure", message=text, type=check.limit)
        else:
            ET.SubElement(case, "system-out").text = text


def _count(element: ET.Element) -> None:
    element.set("tests", str(len(list(element.iter("testcase")))))
    element.set("failures", str(len(list(element.iter("failure")))))
    element.set("errors", str(len(list(element.iter("error")))))
    element.set("skipped", str(len(list(element.iter("skipped")))))
