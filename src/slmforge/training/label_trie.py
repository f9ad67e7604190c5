"""The token sequences of all labels as one prefix trie, laid out as tensors.

Appended to a prompt with a tree mask, its nodes stand for every label at once: labels that begin alike share their
first tokens. Used by `likelihood.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LabelTrie:
    """N nodes that a label goes on from, and the E steps out of them. Node 0 is the prompt's last token.

    Only nodes 1 to N - 1 are fed to the model: the token that ends a label is predicted, never read.
    """

    tokens_N: Tensor  # of node 0 it means nothing
    depths_N: Tensor  # tokens between the prompt's last and this one
    sees_NN: Tensor  # whether a node descends from another, or is it
    step_nodes_E: Tensor  # the node a step leaves
    step_tokens_E: Tensor  # the token it predicts
    paths_EL: Tensor  # 1 where a step belongs to a label
    label_nodes_LN: Tensor  # 1 where a label leads through a node but node 0; stays on the processor

    @classmethod
    def of(cls, labels: Sequence[Sequence[int]], device: torch.device) -> "LabelTrie":
        """The trie of `labels`, each the tokens of a label with its end; none may be empty."""
        parents, tokens, depths = [0], [0], [0]
        children: dict[tuple[int, int], int] = {}
        steps: dict[tuple[int, int], int] = {}
        paths: list[tuple[int, int]] = []
        for number, label in enumerate(labels):
            node = 0
            for place, token in enumerate(label):
                paths.append((steps.setdefault((node, token), len(steps)), number))
                if place == len(label) - 1:
                    break
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    parents.append(node)
                    tokens.append(token)
                    depths.append(depths[node] + 1)
                node = children[node, token]
        paths_EL = torch.zeros(len(steps), len(labels), dtype=torch.float64)
        paths_EL[tuple(torch.tensor(paths).T)] = 1
        label_nodes_LN = torch.zeros(len(labels), len(tokens))
        left_E = torch.tensor([node for node, _ in steps])
        for step, number in paths:
            label_nodes_LN[number, left_E[step]] = 1
        label_nodes_LN[:, 0] = 0
        return cls(
            tokens_N=torch.tensor(tokens, device=device),
            depths_N=torch.tensor(depths, device=device),
            sees_NN=_ancestors(parents).to(device),
            step_nodes_E=left_E.to(device),
            step_tokens_E=torch.tensor([token for _, token in steps], device=device),
            paths_EL=paths_EL.to(device),
            label_nodes_LN=label_nodes_LN,
        )

    def nodes_of(self, wanted_RL: Tensor) -> Tensor:
        """Which nodes but node 0 lead to the labels that are wanted of each row, shape (R, N), on the processor."""
        return wanted_RL.float() @ self.label_nodes_LN > 0


def _ancestors(parents: Sequence[int]) -> Tensor:
    sees_NN = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):  # a parent stands before its children
        sees_NN[node] |= sees_NN[parent]
    return sees_NN
