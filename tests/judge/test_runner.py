"""Asking judges: killed runs go on without losing or paying twice, faults are asked again, budgets are kept."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

from sekkei.core.errors import UserError
from sekkei.judge.ledger import FILE, Ledger
from sekkei.judge.pairwise import SCHEMA, pair_messages
from sekkei.judge.runner import GIVE_UP_AFTER, ask, estimate, request
from sekkei.llm import LLM, LLMError, Settings, TransientError, user
from sekkei.llm.budget import Budget, BudgetConfig, Budgeted
from sekkei.llm.limit import Limited
from sekkei.llm.scripted import Scripted

CONCURRENCY = 16
STANDSTILL, PATIENCE = 120, 1500  # seconds without an answer, of a whole run: a machine may have other work
CLIENT = """
import sys
from pathlib import Path
from sekkei.judge.ledger import Ledger
from sekkei.judge.runner import ask, request
from sekkei.llm import Settings, open_llm, user

url, folder, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
retry = {"attempts": 8, "base_s": 0.01}
llm = open_llm({"endpoint": {"url": url, "model": "judge"}, "concurrency": %d, "retry": retry})
requests = [request(0, llm, [user(f"item {n}")], Settings(max_tokens=8), {"type": "json_object"}) for n in range(count)]
with Ledger(folder) as ledger:
    print(ledger.unknown, ask([llm], requests, ledger, concurrency=%d).answered)
""" % (CONCURRENCY, CONCURRENCY)  # noqa: UP031


class FaultyServer:
    """An endpoint that fails on a share of requests, in three ways, and counts what it answered by item."""

    def __init__(self, fault_share: float) -> None:
        self.every, self.requests, self.faults = round(1 / fault_share), 0, 0
        self.answered: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *_: object) -> None:
        """End what still waits for killed clients, else the loop complains about it when Python exits."""

        async def end() -> None:
            waiting = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                length = int(head.split("content-length:")[1].split("\r\n")[0])
                item = json.loads(await reader.readexactly(length))["messages"][-1]["content"]
                self.requests += 1
                number = self.requests  # others arrive during the sleep
                await asyncio.sleep(0.002)
                if number % self.every == 0:
                    self.faults += 1
                    if self.faults % 3 == 0:
                        writer.close()  # a broken connection
                        return
                    writer.write(_response("500 Oops" if self.faults % 3 == 1 else "429 Busy", {"error": "later"}))
                    continue
                self.answered[item] += 1
                message = {"role": "assistant", "content": item}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                usage = {"prompt_tokens": 3, "completion_tokens": 2}
                writer.write(_response("200 OK", {"choices": [choice], "usage": usage}))
        except (asyncio.IncompleteReadError, ConnectionError):
            return


def _response(status: str, value: object) -> bytes:
    body = json.dumps(value).encode()
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def killed_twice(folder: Path, count: int) -> None:
    with FaultyServer(0.05) as server:
        call = [sys.executable, "-c", CLIENT, server.url, str(folder), str(count)]
        for part in (1, 2):
            process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            seen, since = 0, time.monotonic()
            while len(server.answered) < part * count // 3:
                assert process.poll() is None, process.communicate()
                if len(server.answered) > seen:
                    seen, since = len(server.answered), time.monotonic()
                assert time.monotonic() - since < STANDSTILL, "nothing has been answered for too long"
                time.sleep(0.005)
            process.kill()
            process.communicate()
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=PATIENCE)
        unknown, answered = map(int, done.stdout.split())
        assert 0 < answered < count
        assert unknown <= 2 * CONCURRENCY
        assert server.faults >= 0.04 * count
        assert set(server.answered) == {f"item {n}" for n in range(count)}
        again = sum(server.answered.values()) - count
        assert again <= 2 * CONCURRENCY
        assert again <= unknown, "what was paid twice must be counted as unknown"
    lines = [json.loads(line) for line in (folder / FILE).read_text().splitlines()]
    replies = [line for line in lines if "key" in line]
    assert Counter(line["reply"] for line in replies) == Counter(f"item {n}" for n in range(count))
    assert len({line["key"] for line in replies}) == count
    with Ledger(folder) as ledger:
        assert len(ledger.replies) == count
        assert ledger.unknown == unknown
    once_more = subprocess.run(call, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert once_more.stdout.split() == [str(unknown), "0"]


def test_a_run_that_is_killed_twice(tmp_path: Path) -> None:
    killed_twice(tmp_path / "judged", 900)


@pytest.mark.slow
def test_ten_thousand_judgements_killed_twice(tmp_path: Path) -> None:
    killed_twice(tmp_path / "judged", 10_000)


def questions(llm: LLM, count: int) -> list:
    return [request(0, llm, [user(f"item {n}")], Settings(max_tokens=10), SCHEMA) for n in range(count)]


def test_estimate_counts_what_is_left(tmp_path: Path) -> None:
    llm = LLM(Scripted(lambda call: "ok"))
    asked = questions(llm, 10)
    with Ledger(tmp_path) as ledger:
        before = estimate([*asked, asked[0]], ledger)
        assert (before.requests, before.done, before.completion_tokens) == (10, 0, 100)
        assert before.cost(1e6, 0) == before.prompt_tokens == 15
        ask([llm], asked[:4], ledger)
        after = estimate(asked, ledger)
        assert (after.requests, after.done) == (6, 4)


def test_failures_are_noted_and_asked_again(tmp_path: Path) -> None:
    replies = [LLMError("refused") if n == 3 else f"reply {n}" for n in range(8)]
    first = LLM(Scripted(replies))
    asked = questions(first, 8)
    with Ledger(tmp_path) as ledger:
        found = ask([first], asked, ledger, concurrency=1)
        assert (found.answered, found.failures, found.stopped) == (7, ["refused"], "")
    second = LLM(Scripted(["now"]))
    with Ledger(tmp_path) as ledger:
        assert ledger.unknown == 0
        assert ask([second], asked, ledger).answered == 1
        assert ledger.replies[asked[3].key][0] == "now"


def test_a_judge_that_cannot_be_reached_stops_the_run(tmp_path: Path) -> None:
    script = Scripted(lambda call: TransientError("no luck"))
    llm = LLM(script)
    with Ledger(tmp_path) as ledger:
        found = ask([llm], questions(llm, 200), ledger, concurrency=4)
    assert found.stopped == "no luck"
    assert len(script.calls) < GIVE_UP_AFTER + 4


def test_a_spent_budget_keeps_what_is_done(tmp_path: Path) -> None:
    llm = LLM(Budgeted(Limited(Scripted(lambda call: "ok"), 2), Budget(BudgetConfig(calls=5))))
    asked = questions(llm, 20)
    with Ledger(tmp_path) as ledger:
        found = ask([llm], asked, ledger, concurrency=2)
        assert found.answered == 5
        assert "budget of 5 calls" in found.stopped
        assert len(ledger.replies) == 5


def test_a_torn_line_is_cut_and_damage_is_named(tmp_path: Path) -> None:
    llm = LLM(Scripted(lambda call: "ok"))
    asked = questions(llm, 3)
    with Ledger(tmp_path) as ledger:
        ask([llm], asked, ledger)
    path = tmp_path / FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "abc", "rep')
    with Ledger(tmp_path) as ledger:
        assert len(ledger.replies) == 3
    assert path.read_bytes() == whole
    path.write_bytes(b"no json\n" + whole)
    with pytest.raises(UserError, match="line 1 is damaged"), Ledger(tmp_path):
        pass


def test_a_changed_question_is_another_request() -> None:
    llm = LLM(Scripted(lambda call: "ok"))
    one, two, swapped = (
        request(0, llm, pair_messages("q", *pair), Settings(), SCHEMA).key
        for pair in (("a", "b"), ("a", "c"), ("b", "a"))
    )
    assert len({one, two, swapped}) == 3


def test_a_full_disk_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(Scripted(lambda call: "ok"))

    def full(*_: object) -> None:
        raise UserError("the disk is full")

    with Ledger(tmp_path) as ledger:
        monkeypatch.setattr(ledger, "answered", full)
        with pytest.raises(UserError, match="the disk is full"):
            ask([llm], questions(llm, 5), ledger)
