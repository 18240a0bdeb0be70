"""Which keys name a secret, what is recorded of one, and where it is taken from again."""

import pytest

from runner.config.masking import (
    VISIBLE,
    collected,
    hidden,
    is_visible,
    marked,
    names_a_secret,
    revealed,
    scrub_error,
    scrubber,
    shown_command,
    shown_yaml,
)
from runner.config.read import SECTIONS
from runner.config.secret import Secret, plain

SECRETS = """
password db_password passphrase api_key apiKey APIKey OPENAI_API_KEY apikey access_key aws_secret_access_key private_key
client_secret secret secrets token access_token hf_token authToken Authorization credential credentials GITHUB_TOKEN
"""
OTHERS = """
tokens micro_tokens max_tokens tokenizer tokenizer_name pad_token eos_token_id bos_token unk_token num_tokens key keys
keyboard secretary author passes password_file api_key_env credentials_path token_dropout special_token secret_name
monkey key_dim access
"""


@pytest.mark.parametrize("name", SECRETS.split())
def test_a_key_names_a_secret(name: str) -> None:
    assert names_a_secret(name)


@pytest.mark.parametrize("name", OTHERS.split())
def test_a_key_of_the_field_does_not(name: str) -> None:
    assert not names_a_secret(name)


def test_sections_of_the_runner_hold_no_secrets() -> None:
    assert {"name", "version", *SECTIONS} == VISIBLE
    assert is_visible("run.seed")
    assert is_visible("model.inner._target_")
    assert not is_visible("model.run")


def marked_here(config: dict[str, object]) -> dict[str, object]:
    return marked(config, origin=lambda key: f"where {key} stands")


def test_what_is_recorded_says_where_it_came_from() -> None:
    found = marked_here({"a": {"api_key": "abc", "width": 3}, "b": [{"password": 5}, {"token": None}]})
    assert hidden(found) == {
        "a": {"api_key": "*** from where a.api_key stands", "width": 3},
        "b": [{"password": "*** from where b.0.password stands"}, {"token": None}],
    }
    assert sorted(collected(found)) == ["a.api_key", "b.0.password"]
    assert plain(found) == {"a": {"api_key": "abc", "width": 3}, "b": [{"password": 5}, {"token": None}]}
    assert "abc" not in repr(found)


def test_a_mapping_of_credentials_is_secret_as_a_whole_but_an_object_is_not() -> None:
    found = marked_here({"credentials": {"user": "me"}, "secret": {"_target_": "a.B", "width": 1, "token": "t"}})
    assert hidden(found) == {
        "credentials": {"user": "*** from where credentials.user stands"},
        "secret": {"_target_": "a.B", "width": 1, "token": "*** from where secret.token stands"},
    }


def test_a_recorded_secret_comes_back_from_memory_or_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "7")
    recorded = {
        "given": "*** from the command line",
        "read": "*** from ${oc.env:OURS}",
        "number": "*** from ${oc.decode:${oc.env:OURS}}",
        "url": "*** from https://${oc.env:OURS}/${oc.env:NOT_SET,there}",
        "stars": "*** and more",
    }
    found, faults = revealed(recorded, {"given": Secret(value="v", source="the command line")})
    assert plain(found) == {
        "given": "v",
        "read": "7",
        "number": 7,
        "url": "https://7/there",
        "stars": "*** and more",
    }
    assert faults == []
    assert hidden(found) == recorded


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("the command line", "the value, from the command line, is a secret, which no record of a run holds. Give its"),
        ("${oc.env:NOT_SET}", "${oc.env:NOT_SET} cannot be taken from the environment here: "),
        ("${hydra:runtime.cwd}${oc.env:HOME}", "is a secret, which no record of a run holds."),
        ("part of ${oc.env:HOME}", "the value, from part of ${oc.env:HOME}, is a secret"),
    ],
)
def test_one_that_is_nowhere_is_a_fault_of_its_key(source: str, words: str) -> None:
    found, faults = revealed({"a": {"key": f"*** from {source}"}}, {})
    assert [fault.key for fault in faults] == ["a.key"]
    assert words in faults[0].message
    assert faults[0].message.endswith("Give its value: a.key=VALUE")
    assert found == {"a": {"key": f"*** from {source}"}}


def test_a_text_is_scrubbed_of_values_and_of_their_lines_but_not_of_short_ones() -> None:
    values = ["hunter22", "-----BEGIN-----\nMIIEvQIBADAN\n", "abc", 123456]
    scrub = scrubber([Secret(value=value, source="x") for value in values])
    assert scrub("a hunter22, 'MIIEvQIBADAN', abc and 123456") == "a ***, '***', abc and ***"


def test_what_the_environment_put_into_a_longer_text_is_scrubbed_alone_too() -> None:
    secret = Secret(value="https://me:hunter22@sesame.org/v1", source="https://me:${oc.env:P}@${oc.env:H,x}/v1")
    scrub = scrubber([secret])
    assert (
        scrub("no route to sesame.org with hunter22; https://me:hunter22@sesame.org/v1")
        == "no route to *** with ***; ***"
    )


def test_an_error_is_scrubbed_with_what_it_follows_from() -> None:
    scrub = scrubber([Secret(value="hunter22", source="x")])
    cause, error = FileNotFoundError(2, "No such file", "/data/hunter22"), ValueError("with hunter22", 3)
    error.__cause__ = cause
    scrub_error(error, scrub)
    assert error.args == ("with ***", 3)
    assert str(cause) == "[Errno 2] No such file: '/data/***'"


def test_a_command_line_is_recorded_without_them() -> None:
    words = ["runner", "train", "x", "a.api_key=v", "+hf_token=v", "b={c: 1, password: v}", "key=${oc.env:K}", "n=1"]
    words += ["token=${oc.env:T}"]
    assert shown_command(words) == [
        *("runner", "train", "x", "a.api_key=***", "+hf_token=***", "b=***", "key=${oc.env:K}", "n=1"),
        "token=${oc.env:T}",
    ]


def test_printed_yaml_hides_short_values_after_their_own_key_only() -> None:
    secrets = {"a.pin.password": Secret(value=12, source="x"), "b.token": Secret(value="it's", source="x")}
    text = "steps: 12\npassword: 12\ntoken: it's\nother: it's\n"
    assert shown_yaml(text, secrets) == "steps: 12\npassword: '***'\ntoken: '***'\nother: it's\n"
