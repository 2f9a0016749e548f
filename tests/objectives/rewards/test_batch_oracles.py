"""Programs and servers as oracles: their answers, endpoints, errors and time limits."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from triptych.objectives.rewards.molecules.batch_answers import chosen, read_json, read_text
from triptych.objectives.rewards.molecules.component import Failure
from triptych.objectives.rewards.molecules.external_process import ExternalProcess, ProgramError
from triptych.objectives.rewards.molecules.objective import MoleculeObjective
from triptych.objectives.rewards.molecules.python_component import PythonComponent
from triptych.objectives.rewards.molecules.rest_service import RestService
from triptych.objectives.rewards.molecules.scoring_pool import ScoringPool
from triptych.objectives.rewards.molecules.transforms import ReverseSigmoid, Step
from triptych.objectives.rewards.remote.http_json import HttpConfig, RequestError

# Length and negative length of each SMILES, as REINVENT 4 asks for; notes each run in a file.
LENGTHS = """import json, sys
lines = sys.stdin.read().split()
open("runs", "a").write(" ".join(lines) + "\\n")
parts = {"long": [len(x) for x in lines], "short": [-len(x) for x in lines]}
print(json.dumps({"version": 1, "payload": parts}))
"""


@pytest.mark.parametrize(
    ("answer", "endpoint"),
    [
        ([0.5, None], None),
        ({"scores": [0.5, None], "smiles": ["C", "CC"]}, None),
        ({"activity": [0.5, "nan"]}, None),
        ({"activity": [0.5, "failed"], "solubility": [1, 2]}, "activity"),
        ([{"smiles": "C", "activity": 0.5}, {"smiles": "CC"}], "activity"),
        ({"version": 1, "payload": {"predictions": [0.5, None]}}, None),
    ],
)
def test_forms_of_answers(answer, endpoint):
    for found in (read_json(answer, 2), read_text(json.dumps(answer), 2)):
        first, second = chosen(found, endpoint)
        assert first == 0.5
        assert isinstance(second, Failure)


def test_lines_and_mistakes_of_answers():
    found = chosen(read_text("0.5\n\nnan\n-3e2\n\n\n", 4), None)
    assert [found[0], found[3]] == [0.5, -300]
    assert found[1] == Failure("it gave nothing in place of a number")
    assert found[2] == Failure("it gave nan in place of a number")
    for text, match in [
        ("0.5\n", "2 molecules were sent, and 1 results came back"),
        ("{]", "the output is no JSON"),
        ('{"a": 1}', "give a list with numbers"),
        ("[1]", "2 molecules were sent, and 1 results"),
    ]:
        with pytest.raises(ValueError, match=match):
            read_text(text, 2)
    two = {"a": [1.0], "b": [2.0]}
    with pytest.raises(ValueError, match="the answer has a, b: set endpoint"):
        chosen(two, None)
    with pytest.raises(ValueError, match="has no 'c', only a, b"):
        chosen(two, "c")


def test_endpoints_share_one_run_and_workers_get_batches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lengths.py").write_text(LENGTHS)
    command = ["python3", "lengths.py"]
    parts = [
        ExternalProcess(command, "long", transform=Step(2, 9)),
        ExternalProcess(command, "short", transform=ReverseSigmoid(-9, 0)),
    ]
    objective = MoleculeObjective(parts)
    assert objective.names == ["long", "short"]
    assert objective.batch_size == 64
    first, second, third = objective.scores(["C", "CC", "CCC"])
    assert first.components == {"long": 0.0}
    assert second.raw == {"long": 2, "short": -2}
    assert third.score > 0
    assert (tmp_path / "runs").read_text() == "C CC CCC\n"
    objective.scores(["CC"])  # asked for again, it is asked anew
    assert (tmp_path / "runs").read_text() == "C CC CCC\nCC\n"
    pool = ScoringPool(objective, num_workers=1, time_limit_s=60)
    results = dict(pool.score(["CC", "CCC", "CCCC"]))
    assert [results[row].raw["long"] for row in range(3)] == [2, 3, 4]
    assert (tmp_path / "runs").read_text().splitlines()[2:] == ["CC CCC CCCC"]
    pool.close()


def test_a_program_that_is_wrong_missing_or_slow(tmp_path):
    with pytest.raises(
        ValueError, match=r"begins with \./no_such_dock, and there is no such program"
    ):
        ExternalProcess("./no_such_dock --fast")
    with pytest.raises(ValueError, match=r"inputs holds net\.pt, and there is no such file"):
        ExternalProcess("cat", inputs=["net.pt"])
    with pytest.raises(ValueError, match="batch_size is 0"):
        ExternalProcess("cat", batch_size=0)
    said = ExternalProcess(["sh", "-c", "echo segmentation fault in pocket 3 >&2; exit 139"])
    with pytest.raises(ProgramError, match="status 139: segmentation fault in pocket 3"):
        said.values([None], ["C"])
    with pytest.raises(ProgramError, match="status 1, and wrote nothing to stderr"):
        ExternalProcess("false").values([None], ["C"])
    late = tmp_path / "late"
    slow = ExternalProcess(
        ["sh", "-c", f"(sleep 1; touch {late}) & echo loading >&2; sleep 300; echo 1"],
        timeout_s=0.3,
    )
    began = time.monotonic()
    with pytest.raises(ProgramError, match=r"took over 0\.3 s for 1 molecules: loading"):
        slow.values([None], ["C"])
    assert time.monotonic() - began < 60
    time.sleep(1.2)
    assert not late.exists()  # all that it had started ended with it


class Server(BaseHTTPRequestHandler):
    """Answers with the lengths of SMILES; at first with 503."""

    asked: list[dict] = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        status = 503 if len(self.asked) == 1 else 200
        values = [len(text) for text in body["smiles"]]
        answer = json.dumps({"size": values, "other": values}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass


def test_a_server_as_an_oracle():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/predict"
        http = HttpConfig(backoff_s=0.01)
        parts = [
            RestService(url, name, http, request={"model": "a"}, transform=Step(2, 9))
            for name in ("size", "other")
        ]
        found = MoleculeObjective(parts, mean="arithmetic").scores(["C", "CC"])
        assert [each.raw for each in found] == [{"size": 1, "other": 1}, {"size": 2, "other": 2}]
        assert Server.asked == [{"smiles": ["C", "CC"], "model": "a"}] * 2
        with pytest.raises(ValueError, match="has no 'charge', only size, other"):
            RestService(url, "charge", http).values([None], ["C"])
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(RequestError, match="did not answer after 1 try"):
        RestService(url, http=HttpConfig(retries=0)).values([None], ["C"])
    with pytest.raises(ValueError, match="the url is 'localhost'"):
        RestService("localhost")


def test_a_function_of_a_batch():
    component = PythonComponent("tests.objectives.rewards.molecule_components:lengths")
    assert component.batch_size == 64
    found = component.values([None] * 2, ["C", "CCO"])
    assert found == [Failure("it gave nothing"), 3.0]
    described = component.identity()[
        "source of tests.objectives.rewards.molecule_components:lengths"
    ]
    assert described[0] == "def lengths(smiles):"
