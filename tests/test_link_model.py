"""Exchanges between any ranks of a profile: through one host's memory, and between hosts."""

import json

import pytest

from helpers.planning import made_up_profile, read_model
from hetmp.core.errors import HetmpError
from hetmp.planner import Extent, LinkModel, PlanOptions, Profile, make_plan
from hetmp.planner.cluster_file import cluster_profile, joined_profiles, links_of
from hetmp.planner.profiling.links import sets_to_measure

SIZE = 1e6
MEMORY = 1e-6, 1e10
"""Latency (s) and bandwidth (bytes/s) within a host."""

NETWORK = 1e-3, 1e8
SLOW_NETWORK = 0.1, 1e6


def between(ranks, link):
    """Made-up times of exchanges between *ranks*."""
    return tuple(
        times.model_copy(update={"ranks": tuple(ranks)}) for times in links_of(*link, len(ranks))
    )


def on_hosts(speeds, hosts, network=NETWORK, sets=None):
    """A made-up profile whose ranks lie on *hosts*, with the sets that are measured of these."""
    profile = made_up_profile(read_model("paper-cifar"), speeds)
    links = ()
    for ranks in sets_to_measure(hosts) if sets is None else sets:
        one_host = len({hosts[rank] for rank in ranks}) == 1
        links += between(ranks, MEMORY if one_host else network)
    return profile.model_copy(update={"hosts": tuple(hosts), "links": links})


def seconds(profile, ranks, collective="Allgatherv"):
    return LinkModel(profile).between(ranks).seconds(collective, SIZE, 1 / len(ranks))


def test_ranks_that_were_measured_are_taken_as_they_are():
    profile = on_hosts((1, 1, 1, 1), (0, 0, 2, 2))
    for ranks, link in (((0, 1, 2, 3), NETWORK), ((0, 1), MEMORY), ((0, 2), NETWORK)):
        latency, bandwidth = link
        steps, part = len(ranks).bit_length() - 1, (len(ranks) - 1) / len(ranks)
        assert seconds(profile, ranks) == pytest.approx(
            steps * latency + part * SIZE / bandwidth, rel=1e-6
        )
    assert seconds(profile, (3,)) == 0.0


def test_ranks_of_one_host_exchange_as_others_of_one_host():
    """Neither host's pair is the other's, and both are far from a pair between hosts."""
    profile = on_hosts((1, 1, 1, 1), (0, 0, 2, 2))
    assert seconds(profile, (2, 3)) == seconds(profile, (0, 1)) < seconds(profile, (1, 3)) / 10
    assert seconds(profile, (1, 3)) == seconds(profile, (0, 2))


def test_ranks_that_were_not_measured_are_between_hosts_where_theirs_are():
    """Three ranks of two hosts: the bytes are those that a host receives, whoever is there."""
    profile = on_hosts((1, 1, 1, 1), (0, 0, 2, 2))
    model = LinkModel(profile)
    assert model.extent((0, 1, 3)) == Extent(3, 2)
    some = seconds(profile, (0, 1, 3))
    assert min(seconds(profile, (0, 2)), seconds(profile, (0, 1, 2, 3))) <= some
    assert some <= 1.3 * max(seconds(profile, (0, 2)), seconds(profile, (0, 1, 2, 3)))


def test_a_profile_without_hosts_is_scaled_by_the_number_of_its_ranks():
    profile = made_up_profile(read_model("paper-cifar"), (1, 1, 1, 1), latency=1e-9)
    part = ((2 - 1) / 2) / ((4 - 1) / 4)
    assert seconds(profile, (1, 2)) == pytest.approx(
        part * seconds(profile, (0, 1, 2, 3)), rel=1e-3
    )


def test_a_slow_network_is_left_to_the_ranks_of_one_host():
    """Four equal ranks on two hosts, of which the plan keeps the two of one."""
    profile = on_hosts((1, 1, 1, 1), (0, 0, 2, 2), network=SLOW_NETWORK)
    planned = make_plan(read_model("paper-cifar"), profile)
    assert planned.plan.members in ((0, 1), (2, 3))
    # In the order of speed these two are no neighbours.
    profile = on_hosts((1, 0.9, 0.95, 0.85), (0, 0, 2, 2), network=SLOW_NETWORK)
    planned = make_plan(read_model("paper-cifar"), profile)
    assert planned.plan.members == (0, 1)
    fast = on_hosts((1, 1, 1, 1), (0, 0, 2, 2), network=MEMORY)
    assert make_plan(read_model("paper-cifar"), fast).plan.members == (0, 1, 2, 3)
    all_of_them = make_plan(read_model("paper-cifar"), profile, PlanOptions(leave_out=False))
    assert all_of_them.prediction.seconds > planned.prediction.seconds


def test_a_profile_remembers_hosts_and_sets(tmp_path):
    profile = on_hosts((1, 1, 1), (0, 0, 2))
    path = tmp_path / "profile.json"
    profile.save(path)
    assert Profile.load(path) == profile
    document = json.loads(path.read_text())
    for edit, named in (
        ({"hosts": [0, 0]}, "hosts has 2 entries for 3 ranks"),
        ({"hosts": [0, 0, 3]}, "there is no rank 3 among 3"),
    ):
        path.write_text(json.dumps(document | edit))
        with pytest.raises(HetmpError, match=named):
            Profile.load(path)
    document["links"][-1]["ranks"] = [0, 7]
    path.write_text(json.dumps(document))
    with pytest.raises(HetmpError, match="there is no rank 7 among 3"):
        Profile.load(path)


CLUSTER = """
[[ranks]]
profile = "one.json"
count = 4
per_host = 2
nodes = "new"
[[ranks]]
profile = "one.json"
count = 2
nodes = "new"
[[ranks]]
profile = "one.json"
[link]
latency = 1e-3
bandwidth = 1e8
[link_within_host]
latency = 1e-6
bandwidth = 1e10
"""


def test_a_cluster_says_which_ranks_share_a_host(tmp_path):
    made_up_profile(read_model("paper-cifar"), [1]).save(tmp_path / "one.json")
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    profile = cluster_profile(tmp_path / "cluster.toml")
    assert profile.hosts == (0, 0, 2, 2, 0, 2, 6)
    assert {link.ranks for link in profile.links} == {(), (0, 1, 4)}
    assert seconds(profile, (2, 3, 5)) == seconds(profile, (0, 1, 4))
    assert seconds(profile, (2, 3, 5)) < seconds(profile, (0, 2, 6)) / 10
    without = CLUSTER[: CLUSTER.index("[link_within_host]")]
    (tmp_path / "cluster.toml").write_text(without)
    assert cluster_profile(tmp_path / "cluster.toml").hosts == ()


def named(profile, *hosts):
    """The profile with names for its ranks' hosts."""
    devices = [
        device.model_copy(update={"host": host})
        for device, host in zip(profile.devices, hosts, strict=True)
    ]
    return profile.model_copy(update={"devices": tuple(devices)})


def test_joined_profiles_keep_the_links_of_each():
    pair = named(on_hosts((1, 1), (0, 0)), "a", "a")
    other = named(on_hosts((1, 1), (0, 0)), "b", "b")
    with pytest.raises(HetmpError, match=r"hosts a, b, and none has times .* --ranks-from"):
        joined_profiles([pair, other])
    across = named(on_hosts((1, 1), (0, 1)), "a", "b")
    joined = joined_profiles([pair, other, across])
    assert joined.hosts == (0, 0, 2, 2, 0, 2)
    assert {link.ranks for link in joined.links} == {(0, 1), (2, 3), (4, 5)}
    assert seconds(joined, (2, 3)) == seconds(pair, (0, 1))
    assert seconds(joined, (0, 2)) == seconds(across, (0, 1))
