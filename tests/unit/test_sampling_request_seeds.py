"""Seeds of one trajectory's requests."""

import itertools

from efficient_rollout.sampling.request_seeds import TrajectorySeeds

TURNS = ([5, 6, 7], [5, 6, 8], [5, 6, 7, 9])  # two as long as one another


def seeds(base: int, asked: list[tuple[list[int], int | None]]) -> list[int]:
    trajectory = TrajectorySeeds(base)
    return [trajectory.next_seed(prompt, own) for prompt, own in asked]


def test_no_two_requests_of_a_trajectory_share_a_seed_and_no_two_trajectories():
    # The same turn asked three times over, with a seed of the loop's own and without.
    asked = [(turn, own) for own in (None, 42) for turn in TURNS for _ in range(3)]
    found = seeds(1, asked) + seeds(2, asked)
    assert len(set(found)) == len(found) == 36
    assert all(0 <= seed < 2**63 for seed in found)


def test_branches_have_their_seeds_whichever_comes_first():
    wanted = sorted(seeds(1, [(turn, None) for turn in (*TURNS, *TURNS)]))
    for order in itertools.permutations((*TURNS, *TURNS)):
        assert sorted(seeds(1, [(turn, None) for turn in order])) == wanted
