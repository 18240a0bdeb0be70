"""A client of yaml-language-server over stdio: what an editor shows of a file."""

import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

TIMEOUT_S = 60
SETTINGS = {
    "yaml": {
        "validate": True,
        "completion": True,
        "hover": True,
        "schemaStore": {"enable": False},  # it would ask the network for schemas
        "schemas": {},
    }
}


class LanguageServer:
    """A server under way; `close` ends it and whatever it has started."""

    def __init__(self, command: list[str], root: Path, settings: dict[str, Any] | None = None) -> None:
        self._root = root
        self._settings = {"yaml": {**SETTINGS["yaml"], **(settings or {})}}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self._arrived: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._number = 0
        capabilities = {
            "workspace": {"configuration": True, "workspaceFolders": True, "didChangeConfiguration": {}},
            "textDocument": {
                "publishDiagnostics": {},
                "completion": {"completionItem": {"documentationFormat": ["plaintext"]}},
                "hover": {"contentFormat": ["plaintext"]},
            },
        }
        folders = [{"uri": root.as_uri(), "name": "project"}]
        self._ask(
            "initialize",
            processId=os.getpid(),
            rootUri=root.as_uri(),
            capabilities=capabilities,
            workspaceFolders=folders,
        )
        self._tell("initialized")
        self._tell("workspace/didChangeConfiguration", settings=self._settings)

    def close(self) -> None:
        """End the server."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=TIMEOUT_S)
        self._reader.join(timeout=TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()

    def diagnostics(self, name: str, text: str) -> list[str]:
        """What the server says is wrong with a file of this text: `line: message`, from line 1."""
        uri = self._open(name, text)
        published = self._wait(
            lambda one: one.get("method") == "textDocument/publishDiagnostics" and one["params"]["uri"] == uri
        )
        found = published["params"]["diagnostics"]
        return [f"{one['range']['start']['line'] + 1}: {one['message']}" for one in found]

    def completions(self, name: str, text: str) -> dict[str, str]:
        """What the server offers at the place of `|` in a text, each with its documentation."""
        before = text.partition("|")[0]
        uri = self._open(name, text.replace("|", "", 1))
        place = {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}
        answer = self._ask("textDocument/completion", textDocument={"uri": uri}, position=place)
        items = answer["items"] if isinstance(answer, dict) else answer or []
        return {one["label"]: _text(one.get("documentation", "")) for one in items}

    def hover(self, name: str, text: str) -> str:
        """What the server shows at the place of `|` in a text."""
        before = text.partition("|")[0]
        uri = self._open(name, text.replace("|", "", 1))
        place = {"line": before.count("\n"), "character": len(before.rpartition("\n")[2])}
        answer = self._ask("textDocument/hover", textDocument={"uri": uri}, position=place)
        return _text(answer["contents"]) if answer else ""

    def _open(self, name: str, text: str) -> str:
        uri = (self._root / name).as_uri()
        self._tell("textDocument/didClose", textDocument={"uri": uri})
        document = {"uri": uri, "languageId": "yaml", "version": self._next(), "text": text}
        self._drop()
        self._tell("textDocument/didOpen", textDocument=document)
        return uri

    def _drop(self) -> None:
        """Forget what has arrived, but answer what the server has asked."""
        barrier = self._next()
        self._send({"id": barrier, "method": "textDocument/hover", "params": _NOWHERE})
        self._wait(lambda one: one.get("id") == barrier and "method" not in one)

    def _ask(self, method: str, **params: Any) -> Any:
        number = self._next()
        self._send({"id": number, "method": method, "params": params})
        answer = self._wait(lambda one: one.get("id") == number and "method" not in one)
        assert "error" not in answer, answer
        return answer["result"]

    def _tell(self, method: str, **params: Any) -> None:
        self._send({"method": method, "params": params})

    def _wait(self, wanted: Any) -> dict[str, Any]:
        """The next message that is wanted; answers the server's own questions meanwhile."""
        while True:
            message = self._arrived.get(timeout=TIMEOUT_S)
            assert message is not None, f"the language server ended with {self._process.wait(timeout=TIMEOUT_S)}"
            assert message.get("method") != "telemetry/event", f"the language server failed: {message['params']}"
            if "method" in message and "id" in message:
                self._answer(message)
            elif wanted(message):
                return message

    def _answer(self, question: dict[str, Any]) -> None:
        result: Any = None
        if question["method"] == "workspace/configuration":
            result = [self._settings.get(item.get("section"), {}) for item in question["params"]["items"]]
        self._send({"id": question["id"], "result": result})

    def _next(self) -> int:
        self._number += 1
        return self._number

    def _send(self, message: dict[str, Any]) -> None:
        content = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self._process.stdin
        self._process.stdin.write(b"Content-Length: %d\r\n\r\n%s" % (len(content), content))
        self._process.stdin.flush()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream
        while header := stream.readline():
            length = int(header.partition(b":")[2])
            while stream.readline().strip():
                pass
            self._arrived.put(json.loads(stream.read(length)))
        self._arrived.put(None)


_NOWHERE = {"textDocument": {"uri": "file:///nowhere.yaml"}, "position": {"line": 0, "character": 0}}


def _text(content: Any) -> str:
    return content["value"] if isinstance(content, dict) else str(content)
