import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer import algorithms, catalogue
from peer.catalogue import Compression, parse_compression
from peer.compression import compressor, values
from peer.compression.bodies import Layout
from peer.errors import UsageError
from peer.grammar import PARTS, Shard, Sized, parse_budget, parse_shard, written
from peer.graphs import KNOWN, TREES
from peer.mesh import graphs, topology
from peer.schedule import Schedule


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("none", Compression()),
        ("fp32", Compression(values="fp32")),
        ("fp16", Compression(values="fp16")),
        ("int4", Compression(values="int4")),
        ("sign", Compression(values="sign")),
        ("topk=1%", Compression(Sized("topk", 0.01))),
        ("topk=1%,fp16", Compression(Sized("topk", 0.01), "fp16")),
        ("int8, topk=0.1%", Compression(Sized("topk", 0.001), "int8")),
        ("topk=0.25", Compression(Sized("topk", 0.25))),
        ("globaltopk=1%,bf16", Compression(Sized("globaltopk", 0.01), "bf16")),
        ("sign,randomk=1%", Compression(Sized("randomk", 0.01), "sign")),
        ("grouped=8,int4", Compression(Sized("grouped", 8), "int4")),
        ("lowrank=2", Compression(transform=Sized("lowrank", 2))),
        ("lowrank=2,fp16", Compression(values="fp16", transform=Sized("lowrank", 2))),
        ("bits=1", Compression(transform=Sized("bits", 1.0))),
        ("bits=.5", Compression(transform=Sized("bits", 0.5))),
    ],
)
def test_a_compression_is_a_sparsifier_a_value_type_and_a_transform(text: str, meant: Compression) -> None:
    assert parse_compression(text) == meant


@pytest.mark.parametrize("text", ["auto,fp16", "topk=1%,auto"])
def test_auto_chooses_everything_itself(text: str) -> None:
    with pytest.raises(UsageError, match="'auto' stands alone"):
        parse_compression(text)
    assert parse_compression("auto").is_auto
    with pytest.raises(UsageError, match="sparse-push cannot work with compression 'auto'; it can with topk"):
        catalogue.compression_of("sparse-push", "auto")


@pytest.mark.parametrize("name", list(PARTS))
def test_every_part_is_parsed_as_it_is_written_and_named_in_errors_and_in_help(name: str) -> None:
    part, found = PARTS[name], parse_compression(written(name))
    at = {"sparsifier": found.sparsifier, "transform": found.transform}.get(part.kind)
    assert found.values == name if part.kind == "value type" else at is not None and at.name == name
    assert written(name) in catalogue.COMPRESSION_HELP
    with pytest.raises(UsageError, match=re.escape(written(name))):
        parse_compression("zip")
    wrong = f"{name}=0" if part.amount else f"{name}=1"
    with pytest.raises(UsageError, match=name):
        parse_compression(wrong)


def test_words_and_what_makes_bytes_of_them_have_the_same_names() -> None:
    for kind, built in (
        ("sparsifier", compressor.SPARSIFIERS),
        ("value type", values.VALUE_TYPES),
        ("transform", compressor.TRANSFORMS),
    ):
        names = [name for name, part in PARTS.items() if part.kind == kind]
        assert [name for name in names if name != "auto"] == list(built), "auto is one of the others"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "zip",
        "topk",
        "topk=",
        "topk=0%",
        "topk=101%",
        "topk=-1%",
        "topk=nan",
        "bits=",
        "bits=0",
        "bits=9",
        "fp16,int8",
        "topk=1%,topk=2%",
        "bits=1,fp16",
        "fp16=2",
        "none,fp16",
        "topk=1%%",
        "bits=inf",
        "topk=1e-400",
        "grouped=1",
        "grouped=1025",
        "grouped=2.5",
        "grouped=8%",
        "lowrank=0",
        "lowrank=65",
        "lowrank=1%",
        "lowrank=2,topk=1%",
        "lowrank=2,bits=1",
        "bits=1,topk=1%",
        "bits=1%",
        "sign,int4",
        "sign=",
        "topk=1%,randomk=1%",
    ],
)
def test_a_malformed_compression_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_compression(text)


@given(st.text(max_size=20))
def test_any_text_is_a_compression_or_a_usage_error(text: str) -> None:
    try:
        found = parse_compression(text)
    except UsageError:
        return
    for part in (found.sparsifier, found.transform):
        assert part is None or PARTS[part.name].least <= part.amount <= PARTS[part.name].most
    assert found.bits is None or 0 < found.bits <= catalogue.MAX_BITS


def test_each_algorithm_can_work_with_its_own_default() -> None:
    for name, entry in catalogue.ALGORITHMS.items():
        assert catalogue.compression_of(name, "") == parse_compression(entry.compression)
        for preset in entry.presets.values():
            catalogue.compression_of(name, preset.compression)


def test_an_algorithm_refuses_a_compression_it_cannot_work_with() -> None:
    with pytest.raises(
        UsageError, match=r"sgp cannot work with compression 'topk=1%'; it can with none or fp32, fp16"
    ):
        catalogue.compression_of("sgp", "topk=1%")
    with pytest.raises(
        UsageError, match=r"it can with topk=1%, .*, each with fp32, .*sign or sign or lowrank=2"
    ):
        catalogue.compression_of("sparse-push", "none")
    with pytest.raises(UsageError, match=r"it can with bits=1 or fp32"):
        catalogue.compression_of("difference-push", "none")
    with pytest.raises(UsageError, match="'int4'"):
        catalogue.compression_of("sparse-push", "int4")


def test_unknown_names_are_errors_that_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="difference-push, sgp, sparse-push"):
        catalogue.algorithm("choco")
    with pytest.raises(
        UsageError, match=r"spoken-digits, quadratic, .*characters, script, or name a Python file"
    ):
        catalogue.task("mnist")
    with pytest.raises(UsageError, match="ring, exponential, random-K, complete"):
        catalogue.check_topology("torus")


@pytest.mark.parametrize("text", ["ring", "exponential", "complete", "grid", "random-1", "random-16"])
def test_known_topologies_pass(text: str) -> None:
    assert catalogue.check_topology(text, "sgp") == text


@pytest.mark.parametrize("text", ["chain", "binary-tree", "double-tree", "spanning-tree"])
def test_push_sum_does_not_run_on_trees(text: str) -> None:
    with pytest.raises(UsageError, match=f"sgp runs on exponential, .*, grid, not on '{text}'"):
        catalogue.check_topology(text, "sgp")


def test_every_algorithm_runs_on_topologies_there_are_and_on_trees_alone_where_it_needs_one() -> None:
    trees = {"chain", "binary-tree", "double-tree", "spanning-tree"}
    assert catalogue.algorithm(catalogue.DEFAULT_ALGORITHM).topologies[0] == catalogue.DEFAULT_TOPOLOGY
    for entry in catalogue.ALGORITHMS.values():
        assert set(entry.topologies) <= set(catalogue.TOPOLOGIES)
        assert (set(entry.topologies) <= trees) == (entry.graph == "tree")
        assert entry.graph != "directed" or not set(entry.topologies) & trees


@pytest.mark.parametrize("name", ["detag", "qg-d-psgd"])
def test_an_algorithm_with_a_momentum_of_its_own_takes_none_in_front_of_it(name: str) -> None:
    assert catalogue.momentum_of(name, None) == catalogue.momentum_of(name, 0.0) == 0.0
    with pytest.raises(UsageError, match=rf"{name} makes its own .* --option (momentum|beta)=0\.9"):
        catalogue.momentum_of(name, 0.9)
    assert catalogue.momentum_of("dsgt", 0.9) == 0.9
    assert catalogue.momentum_of("dsgt", None) is None


def test_a_pace_is_one_the_algorithm_is_sound_in() -> None:
    assert catalogue.check_pace("relay-sum", "free") == "free"
    with pytest.raises(UsageError, match="relay-sum-grad cannot run in the pace 'free'; it can in lockstep"):
        catalogue.check_pace("relay-sum-grad", "free")
    with pytest.raises(UsageError, match="no pace is called 'gallop'; there are lockstep, overlap, free"):
        catalogue.check_pace("sgp", "gallop")


@pytest.mark.parametrize("text", ["random-0", "random-17", "random-", "random-K", "random-01", "random-2x"])
def test_random_k_has_a_number_in_range(text: str) -> None:
    with pytest.raises(UsageError, match="1 to 16"):
        catalogue.check_topology(text)


def test_bare_and_dotted_option_keys_mean_the_same() -> None:
    bare = catalogue.resolve_options("difference-push", "quadratic", ["preset=frugal", "dim=5"])
    dotted = catalogue.resolve_options(
        "difference-push", "quadratic", ["algorithm.preset=frugal", "task.dim=5"]
    )
    assert bare == dotted == {"algorithm.preset": "frugal", "task.dim": "5"}
    assert catalogue.options_for("task", bare) == {"dim": "5"}


def test_an_ambiguous_bare_key_is_an_error_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = catalogue.TASKS["quadratic"]
    monkeypatch.setitem(entry.options, "preset", catalogue.Option("a", "", choices=("a",)))
    with pytest.raises(UsageError, match=r"algorithm\.preset or task\.preset"):
        catalogue.resolve_options("difference-push", "quadratic", ["preset=a"])
    assert catalogue.resolve_options("difference-push", "quadratic", ["task.preset=a"]) == {
        "task.preset": "a"
    }


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("colour=red", r"no option 'colour'; there are .*algorithm\.preset"),
        ("preset", "key=value"),
        ("=frugal", "key=value"),
        ("preset=cheap", "dense, balanced, frugal"),
        ("task.preset=frugal", "no option"),
        ("dim=0", "from 1 to"),
        ("dim=1.5", "a whole number"),
        ("dim=", "a whole number"),
        ("dim=1e3", "a whole number, in digits, from 1 to 100000000"),
        ("dim=1.0", "a whole number"),
        ("dim=²", "a whole number"),
        ("warmup=5e1", "a whole number"),
        ("lr-decay=1.2.3:0.1", "written as in"),
        ("lr-decay=.:.", "written as in"),
        ("lr-decay=x", "written as in"),
    ],
)
def test_a_wrong_option_says_what_is_known(pair: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        catalogue.resolve_options("difference-push", "quadratic", [pair])


def test_an_option_is_given_once() -> None:
    with pytest.raises(UsageError, match="twice"):
        catalogue.resolve_options("difference-push", "quadratic", ["dim=5", "task.dim=6"])


@pytest.mark.parametrize("pairs", [["schedule=cosine"], ["schedule=step"]])
def test_a_rate_that_falls_needs_an_end(pairs: list[str]) -> None:
    options = catalogue.resolve_options("sgp", "quadratic", pairs)
    catalogue.check_schedule(options, 10)
    with pytest.raises(UsageError, match="give it --rounds"):
        catalogue.check_schedule(options, 0)


@pytest.mark.parametrize("decay", ["9:9", "0:0.1", "1:0.1", "0.5:0", "0.5:1.5", "0.5:0.1,1.5:0.1"])
def test_a_decay_lies_within_the_session(decay: str) -> None:
    options = catalogue.resolve_options("sgp", "quadratic", ["schedule=step", f"lr-decay={decay}"])
    with pytest.raises(UsageError, match="lr-decay has parts of the session, between 0 and 1"):
        catalogue.check_schedule(options, 10)


_AMOUNTS = st.from_regex(r"[0-9.]{0,3}(e[0-9])?", fullmatch=True)


@given(
    st.sampled_from(["", "constant", "cosine", "step"]),
    _AMOUNTS,
    st.lists(st.tuples(_AMOUNTS, _AMOUNTS), min_size=1, max_size=2),
    st.sampled_from([0, 10]),
)
def test_what_the_catalogue_allows_the_schedule_takes(
    kind: str, warmup: str, decay: list[tuple[str, str]], rounds: int
) -> None:
    pairs = [f"warmup={warmup}", "lr-decay=" + ",".join(f"{at}:{factor}" for at, factor in decay)]
    pairs += [f"schedule={kind}"] if kind else []
    try:
        options = catalogue.resolve_options("sgp", "quadratic", pairs)
        catalogue.check_schedule(options, rounds)
    except UsageError:
        return
    assert Schedule.of(options, 16 * rounds).factor(0) <= 1


def test_every_options_default_is_allowed() -> None:
    entries = [*catalogue.ALGORITHMS.values(), *catalogue.TASKS.values()]
    options = [(key, option) for entry in entries for key, option in entry.options.items()]
    for key, option in [*options, *catalogue.TRAINING_OPTIONS.items()]:
        assert option.check(key, option.default) == option.default


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("3/8", Shard("part", 3, 8)),
        ("0/1", Shard("part", 0, 1)),
        ("natural:3/8", Shard("natural", 3, 8)),
        ("dirichlet=0.1:3/8", Shard("dirichlet", 3, 8, 0.1)),
        ("speaker=jackson", Shard("speaker", speaker="jackson")),
    ],
)
def test_a_shard_is_a_part_or_a_name(text: str, meant: Shard) -> None:
    assert parse_shard(text) == meant


@pytest.mark.parametrize(
    "text", ["8/8", "3", "3/0", "-1/8", "dirichlet=0:1/2", "dirichlet=0.1", "a/b", "", "1/99999"]
)
def test_a_malformed_shard_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_shard(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2MB/min", 2_000_000),
        ("200kB/min", 200_000),
        ("1.5 GB / day", 1_041_666),
        ("6mb/h", 100_000),
        ("1GB/month", 23_148),
        ("none", None),
    ],
)
def test_a_budget_is_bytes_per_minute(text: str, meant: int | None) -> None:
    assert parse_budget(text) == meant


@pytest.mark.parametrize("text", ["", "2MB", "2/min", "2MB/s", "-2MB/min", "2MiB/min", "MB/min", "2MB/min x"])
def test_a_malformed_budget_is_a_usage_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="'2MB/min'"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["1kB/min", "400MB/month", "0GB/h", "9999999GB/min"])
def test_a_budget_that_control_messages_alone_would_take_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="10 kB per minute"):
        parse_budget(text)


def test_a_shard_must_fit_the_task() -> None:
    assert catalogue.check_shard("spoken-digits", "speaker=theo") == "speaker=theo"
    assert catalogue.check_shard("file", "whatever the file reads") == "whatever the file reads"
    with pytest.raises(UsageError, match="jackson"):
        catalogue.check_shard("spoken-digits", "speaker=nobody")
    with pytest.raises(UsageError, match="no speaker shards"):
        catalogue.check_shard("quadratic", "speaker=theo")


def test_what_the_catalogue_allows_the_algorithms_take() -> None:
    layout = Layout((4, 3))
    for name, entry in catalogue.ALGORITHMS.items():
        defaults = {key: option.default for key, option in entry.options.items()}
        made = algorithms.make(name, defaults, layout, torch.float32)
        plain = algorithms.make(name, {}, layout, torch.float32)
        assert vars(made).keys() == vars(plain).keys()
        for attribute in ("guard", "budget", "gamma", "reference", "fill", "correction"):
            assert getattr(made, attribute, None) == getattr(plain, attribute, None), (name, attribute)


# --- topologies and the rooms that build them ----------------------------------------------------------

ROOMS = {"directed": topology.KNOWN, "undirected": KNOWN, "tree": TREES}
OFFERED = [(entry, name) for entry in catalogue.ALGORITHMS.values() for name in entry.topologies]


def test_every_topology_is_offered_by_an_algorithm_and_known_where_it_is_built() -> None:
    for entry, name in OFFERED:
        assert name in ROOMS[entry.graph], f"{entry.name} on {name}"
    assert {name for _, name in OFFERED} == set(catalogue.TOPOLOGIES)
    assert set(catalogue.DIRECTED) == set(topology.KNOWN)
    assert set(catalogue.TREES) == set(TREES)
    assert set(catalogue.TOPOLOGIES) == set(topology.KNOWN) | set(KNOWN)


@pytest.mark.parametrize(("entry", "name"), OFFERED, ids=lambda it: getattr(it, "name", it))
def test_what_is_offered_can_be_built_for_two_to_nine_devices(
    entry: catalogue.AlgorithmEntry, name: str
) -> None:
    spec = catalogue.check_topology(name.replace("K", "2"), entry.name)
    for n in range(2, 10):
        view = tuple(f"p{i}" for i in range(n))
        parents = graphs.spanning_tree(view, {}) if spec == "spanning-tree" else ()
        for me in view:
            if entry.graph == "directed":
                out = topology.out_neighbors(spec, view, me, 0, 0)
            else:
                graphs.check_graph(spec, view, parents)
                place = graphs.graph_of(spec, view, me, parents)
                out = dict(place.out)
                assert entry.graph != "tree" or place.trees
            assert out and out.keys() <= set(view) - {me} and sum(out.values()) < 1
