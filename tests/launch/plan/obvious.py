"""FLOPs of a compiled program, the obvious way: its text line by line, a loop's body times its trips.

Shares nothing with launch/plan. Hand-written kernels are known by what GLM-4.5-Air has: attention names its queries and
keys in its metadata, and a grouped matmul's factors have three sizes that matter beside the number of groups.
"""

import re
from math import prod

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_LINE = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)")


def sizes(text: str) -> list[tuple[str, list[int]]]:
    """(dtype, dimensions) of every array that a text names."""
    return [(dtype, [int(d) for d in dims.split(",") if d]) for dtype, dims in _ARRAY.findall(text)]


def computations(text: str) -> tuple[dict[str, dict[str, str]], str]:
    """Computation -> instruction -> the rest of its line; and the name of the entry."""
    found: dict[str, dict[str, str]] = {}
    entry = current = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.endswith("{") and " -> " in line:
            current = line.removeprefix("ENTRY ").split(" ")[0].lstrip("%")
            entry, found[current] = (current if line.startswith("ENTRY") else entry), {}
        elif current and (match := _LINE.match(line)):
            found[current][match[1]] = match[2]
    return found, entry


class Program:
    def __init__(self, text: str, groups: int):
        self.computations, self.entry = computations(text)
        self.known: dict[str, float] = {}
        self.groups = groups  # experts: the only size of a grouped matmul that is no factor of its FLOPs

    def flops(self, name: str = "") -> float:
        name = name or self.entry
        if name not in self.known:
            lines = self.computations[name]
            self.known[name] = sum(self.line(lines, line) for line in lines.values())
        return self.known[name]

    def line(self, lines: dict[str, str], line: str) -> float:
        if " while(" in line:
            return self.trips(line) * self.flops(_named(line, "body"))
        if " conditional(" in line:
            both = [_named(line, branch) for branch in ("true_computation", "false_computation")]
            listed = re.search(r"branch_computations=\{(.*?)\}", line)
            return max(self.flops(b.strip(" %")) for b in (listed[1].split(",") if listed else both))
        if re.search(r" (fusion|call|async-start)\(", line):
            return self.flops(_named(line, "calls") or _named(line, "to_apply"))
        if " dot(" in line:
            return dot(lines, line)
        return self.kernel(line) if " custom-call(" in line else 0.0

    def trips(self, line: str) -> int:
        """As the compiler noted, else the one number in the loop's condition."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
            return int(noted[1])
        names, numbers = [_named(line, "condition")], []
        while names:
            for inner in self.computations[names.pop()].values():
                numbers += [int(n) for n in re.findall(r" constant\((\d+)\)", inner)]
                names += [called] if (called := _named(inner, "calls")) else []
        (number,) = numbers
        return number

    def kernel(self, line: str) -> float:
        if "FlashAttention" in line:
            q, k = (sizes(re.search(rf'"{each}\\?":\\?"(\S+?\])', line)[1])[0][1] for each in "qk")
            results = len(sizes(line.split(" custom-call(")[0]))
            products = 2 if "FlashAttentionVjp" not in line else {2: 4, 1: 3}[results]
            return products * 2.0 * prod(q) * k[1] / 2  # half are past the diagonal
        if "gpu.triton" in line and "pallas_call" in line:
            arrays = sizes(line.split("api_version")[0])
            return 2.0 * prod({d for dtype, dims in arrays if dtype != "s32" for d in dims} - {self.groups})
        return 0.0


def dot(lines: dict[str, str], line: str) -> float:
    """Two for each element of the result and of the contracted dimensions."""
    left = re.search(r" dot\(%?([\w.\-]+)", line)[1]
    (_, factor), *_ = sizes(lines[left])
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1]
    (_, result), *_ = sizes(line)
    return 2.0 * prod(result) * prod(factor[int(d)] for d in contracted.split(",") if d)


def _named(line: str, key: str) -> str:
    match = re.search(rf"\b{key}=%?([\w.\-]+)", line)
    return match[1] if match else ""
