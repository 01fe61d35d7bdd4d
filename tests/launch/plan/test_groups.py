import pytest

from launch.plan.groups import Span, span

MESH = {"data": 1, "fsdp": 4, "expert": 2, "context": 1, "tensor": 2}  # device = fsdp * 4 + expert * 2 + tensor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}", Span(("tensor",), 2, 1)),
        ("[8,2]<=[16]", Span(("tensor",), 2, 1)),
        ("[4,4]<=[4,4]T(1,0)", Span(("fsdp",), 2, 2)),
        ("[8,2]<=[4,2,2]T(0,2,1)", Span(("expert",), 2, 1)),
        ("{}", Span(("fsdp", "expert", "tensor"), 8, 2)),
        ("mesh['axis_0'=4,'axis_1'=4] {'axis_0'}", Span(("fsdp",), 2, 2)),
        ("mesh['a'=4,'b'=2,'c'=2] {'a','c'}", Span(("fsdp", "tensor"), 4, 2)),
        ("mesh['a'=4,'b'=4] {'b':(1)2}", Span(("expert",), 2, 1)),
        ("mesh['a'=4,'b'=4] {'b':(2)2}", Span(("tensor",), 2, 1)),
        ("mesh['axis_0'=4,'axis_1'=4], device_ids=([4,4]T(1,0)) {'axis_1'}", Span(("fsdp",), 2, 2)),
        ("{{0,4},{4,8},{8,12},{12,0}}", Span(("fsdp",), 1, 2)),
    ],
)
def test_every_notation_of_groups(text, expected):
    assert span(text, MESH, per_node=8) == expected


def test_an_unknown_notation_is_an_error():
    with pytest.raises(ValueError, match="unknown notation"):
        span("every second device", MESH, per_node=8)
