"""The sample AWS policies allow what the device and the backend need, and nothing else."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from edge.contract.topics import Topics
from edge.mqtt.provisioning import CREATE, answer_topics, claim_client_id, register_topic
from tests.project.test_imports import ROOT

ARN = "arn:aws:iot:REGION:ACCOUNT:"
DEVICE, OTHER, BACKEND = "cam-1", "cam-2", "bff-7"
PREFIX = "edge/v1"
TEMPLATE = "edge-camera"


def allowed(policy: str, thing: str, action: str, resource: str) -> bool:
    """Evaluate a policy like AWS IoT: `*` matches any text, `+` and `#` are literal, the thing name is inserted."""
    statements: list[dict[str, Any]] = json.loads((ROOT / "docs/aws" / policy).read_text())["Statement"]
    for statement in statements:
        assert statement["Effect"] == "Allow"
        actions = [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        resources = [statement["Resource"]] if isinstance(statement["Resource"], str) else statement["Resource"]
        patterns = [each.replace("${iot:Connection.Thing.ThingName}", thing) for each in resources]
        if f"iot:{action}" in actions and any(_fits(pattern, ARN + resource) for pattern in patterns):
            return True
    return False


def _fits(pattern: str, resource: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), resource) is not None


def device(action: str, resource: str) -> bool:
    return allowed("device-policy.json", DEVICE, action, resource)


def backend(action: str, resource: str) -> bool:
    return allowed("backend-policy.json", BACKEND, action, resource)


def test_device_policy_allows_the_devices_own_topics_only() -> None:
    own, others = Topics(DEVICE, PREFIX), Topics(OTHER, PREFIX)
    assert device("Connect", f"client/{DEVICE}")
    assert device("Subscribe", f"topicfilter/{own.command}")
    assert device("Receive", f"topic/{own.command}")
    for topic in (own.status, own.event, own.reply(BACKEND), own.telemetry):
        assert device("Publish", f"topic/{topic}")
    assert device("RetainPublish", f"topic/{own.status}")
    assert not device("RetainPublish", f"topic/{own.event}")
    assert not device("Connect", f"client/{OTHER}")
    assert not device("Publish", f"topic/{own.command}")
    for topic in (others.status, others.event, others.command, others.reply(BACKEND)):
        assert not device("Publish", f"topic/{topic}")
        assert not device("Receive", f"topic/{topic}")
        assert not device("Subscribe", f"topicfilter/{topic}")


def test_device_policy_allows_the_devices_own_shadow_only() -> None:
    own, others = (Topics(name, PREFIX).shadow(at_aws=True) for name in (DEVICE, OTHER))
    for topic in own.to_device:
        assert device("Subscribe", f"topicfilter/{topic}")
        assert device("Receive", f"topic/{topic}")
        assert not device("Publish", f"topic/{topic}")
    for topic in (own.get, own.update):
        assert device("Publish", f"topic/{topic}")
        assert not device("RetainPublish", f"topic/{topic}")
    for topic in (*others.to_device, others.get, others.update):
        assert not device("Subscribe", f"topicfilter/{topic}")
        assert not device("Receive", f"topic/{topic}")
        assert not device("Publish", f"topic/{topic}")
    assert not device("Publish", f"topic/$aws/things/{DEVICE}/shadow/name/other/update")
    assert not device("Publish", f"topic/$aws/things/{DEVICE}/shadow/name/edge/delete")
    assert not device("UpdateThingShadow", f"thing/{DEVICE}/edge")


def test_device_policy_allows_no_wildcard_beyond_the_devices_own_shadow() -> None:
    things = "topicfilter/$aws/things"
    # The widest filter that the policy allows.
    assert device("Subscribe", f"{things}/{DEVICE}/shadow/name/edge/#")
    wider = ("edge", "edge#", "edge-2/#", "+/get/accepted", "+/#", "#", "edge+/get/accepted")
    for topic in (*(f"{DEVICE}/shadow/name/{name}" for name in wider), f"{DEVICE}/shadow/#", f"{DEVICE}/#"):
        assert not device("Subscribe", f"{things}/{topic}")
    for name in (OTHER, "+", f"{DEVICE}+", f"+/{DEVICE}", "#"):
        assert not device("Subscribe", f"{things}/{name}/shadow/name/edge/get/accepted")
        assert not device("Subscribe", f"{things}/{name}/shadow/name/edge/#")
    for topic in ("#", "+/#", "$aws/#", f"{PREFIX}/#", f"{PREFIX}/+/command", f"{PREFIX}/{DEVICE}/#"):
        assert not device("Subscribe", f"topicfilter/{topic}")
    for name in (f"{OTHER}/shadow/name/edge/get/accepted", f"{DEVICE}/shadow/name/other/get/accepted"):
        assert not device("Receive", f"topic/$aws/things/{name}")


@pytest.mark.parametrize("policy", sorted(path.name for path in (ROOT / "docs/aws").glob("*-policy.json")))
def test_policy_is_within_the_size_limit_of_aws(policy: str) -> None:
    """Source: AWS IoT Core quotas: a policy document has at most 2048 characters, not counting white space."""
    filled = (ROOT / "docs/aws" / policy).read_text().replace("REGION", "ap-southeast-1")
    assert len(re.sub(r"\s", "", filled.replace("ACCOUNT", "123456789012"))) <= 2048


@pytest.mark.parametrize("name", [DEVICE, OTHER])
def test_backend_policy_allows_reading_and_writing_the_named_shadow_only(name: str) -> None:
    topics = Topics(name, PREFIX).shadow(at_aws=True)
    for action in ("GetThingShadow", "UpdateThingShadow"):
        assert backend(action, f"thing/{name}/edge")
        assert not backend(action, f"thing/{name}/other")
        assert not backend(action, f"thing/{name}")
    assert not backend("DeleteThingShadow", f"thing/{name}/edge")
    # The backend uses HTTPS: with the shadow's topics it could act as the device.
    assert not backend("Publish", f"topic/{topics.update}")


@pytest.mark.parametrize("name", [DEVICE, OTHER])
def test_backend_policy_allows_commands_to_every_device_and_its_own_replies_only(name: str) -> None:
    topics = Topics(name, PREFIX)
    assert backend("Connect", f"client/{BACKEND}")
    assert backend("Publish", f"topic/{topics.command}")
    for topic in (topics.status, topics.event, topics.telemetry, topics.reply(BACKEND)):
        assert backend("Receive", f"topic/{topic}")
        assert backend("Subscribe", f"topicfilter/{topic}")
        assert not backend("Publish", f"topic/{topic}")
    assert not backend("Receive", f"topic/{topics.reply('bff-8')}")
    assert not backend("Subscribe", f"topicfilter/{topics.reply('+')}")
    assert not backend("Receive", f"topic/{topics.command}")


@pytest.mark.parametrize("policy", ["device-policy.json", "backend-policy.json"])
def test_policy_allows_connect_only_with_an_attached_certificate(policy: str) -> None:
    statements = json.loads((ROOT / "docs/aws" / policy).read_text())["Statement"]
    (connecting,) = [each for each in statements if each["Action"] == "iot:Connect"]
    assert connecting["Condition"] == {"Bool": {"iot:Connection.Thing.IsAttached": "true"}}


def test_claim_policy_allows_provisioning_requests_only() -> None:
    requests = (CREATE, register_topic(TEMPLATE))
    answers = [answer for request in requests for answer in answer_topics(request)]
    expected = {
        *(("iot:Publish", f"topic/{topic}") for topic in requests),
        *(("iot:Subscribe", f"topicfilter/{topic}") for topic in answers),
        *(("iot:Receive", f"topic/{topic}") for topic in answers),
    }
    statements = json.loads((ROOT / "docs/aws/claim-policy.json").read_text())["Statement"]
    (connecting, *others) = statements
    assert {each["Effect"] for each in statements} == {"Allow"}
    assert {(each["Action"], name.removeprefix(ARN)) for each in others for name in each["Resource"]} == expected

    def claim(client: str) -> bool:
        return allowed("claim-policy.json", "", "Connect", f"client/{client}")

    assert connecting["Action"] == "iot:Connect"
    assert claim(claim_client_id(DEVICE))
    # Not the client ID of a device either, even if it begins like a claim's.
    assert not any(claim(name) for name in (DEVICE, BACKEND, f"claim-{DEVICE}", "claim"))


def test_provisioning_template_creates_the_devices_thing_with_the_device_policy() -> None:
    template = json.loads((ROOT / "docs/aws/provisioning-template.json").read_text())
    parts = {part["Type"].removeprefix("AWS::IoT::"): part["Properties"] for part in template["Resources"].values()}
    assert parts == {
        "Thing": {"ThingName": {"Ref": "SerialNumber"}},
        "Certificate": {"CertificateId": {"Ref": "AWS::IoT::Certificate::Id"}, "Status": "Active"},
        "Policy": {"PolicyName": "edge-device"},
    }
    assert set(template["Parameters"]) == {"SerialNumber", "AWS::IoT::Certificate::Id"}
    page = (ROOT / "docs/aws-iot.md").read_text()
    for line in ("create-policy --policy-name edge-device", f"create-provisioning-template --template-name {TEMPLATE}"):
        assert line in page
