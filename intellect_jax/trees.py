"""Nested dicts of arrays by the path of keys to each. No JAX."""

from __future__ import annotations

from typing import Any

TreePath = tuple[str, ...]


def leaf(tree: Any, path: TreePath) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def path_keys(path: tuple[Any, ...]) -> TreePath:
    """The path that ``jax.tree_util.tree_flatten_with_path`` gives of a leaf."""
    return tuple(key.key for key in path)


def nested(flat: dict[TreePath, Any]) -> dict[str, Any]:
    """The inverse of :func:`leaf` for all paths."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return tree
