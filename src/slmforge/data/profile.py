"""Profile: what is in a dataset, from one pass over it.

Keeps counts and hashes, not rows. Says nothing of tokens, which need a tokenizer. Called by a profile run; the control
plane keeps the result as JSON.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable

from slmforge.contract.spec import Frozen
from slmforge.data import findings
from slmforge.data.conversations import Conversation, Defect
from slmforge.data.duplicates import Repeats
from slmforge.data.findings import Finding, Occurrences

LABELS_SHOWN = 200
VERY_SHORT_CHARACTERS = 3


class Distribution(Frozen):
    """Of a whole number per row: its mean, and exact nearest-rank percentiles."""

    minimum: int
    mean: float
    p50: int
    p95: int
    p99: int
    maximum: int


class Labels(Frozen):
    """How often each label occurs: `counts` for the most frequent ones, `number` counts all of them.

    `imbalance` is the most frequent label's count over the rarest one's.
    """

    number: int
    counts: dict[str, int]
    imbalance: float


class Profile(Frozen):
    """What a dataset holds. `rows` are the usable ones; `invalid` counts the others by what is wrong with them.

    Prompts are counted without the system prompt, and answers over all assistant turns of a row; plain text has
    neither, and its length stands in `text_characters`.
    """

    rows: int
    invalid_rows: int
    invalid: dict[str, int]
    turns: Distribution | None
    prompt_characters: Distribution | None
    answer_characters: Distribution | None
    text_characters: Distribution | None
    system_prompt_share: float
    labels: Labels | None
    duplicates: int
    contradictions: int
    very_short_answers: int
    findings: list[Finding]


def profile(items: Iterable[Conversation | Defect]) -> Profile:
    """Read every record once. Memory grows by two hashes per row and one counter per different length and label."""
    tally = _Tally()
    for item in items:
        if isinstance(item, Conversation):
            tally.add(item)
        else:
            tally.add_defect(item)
    return tally.profile()


class _Tally:
    """The running counts of one pass."""

    def __init__(self) -> None:
        self.rows = 0
        self.with_system = 0
        self.turns = Counter[int]()
        self.prompts = Counter[int]()
        self.answers = Counter[int]()
        self.texts = Counter[int]()
        self.labels = Counter[str]()
        self.repeats = Repeats()
        self.duplicates, self.contradictions, self.very_short = Occurrences(), Occurrences(), Occurrences()
        self.defects: defaultdict[str, Occurrences] = defaultdict(Occurrences)
        self.examples: dict[str, Defect] = {}

    def add_defect(self, defect: Defect) -> None:
        self.defects[defect.code].add(defect.number)
        self.examples.setdefault(defect.code, defect)

    def add(self, row: Conversation) -> None:
        self.rows += 1
        repeats, contradicts = self.repeats.add(row)
        if repeats:
            self.duplicates.add(row.number)
        if contradicts:
            self.contradictions.add(row.number)
        if row.text is not None:
            self.texts[len(row.text)] += 1
        else:
            self._add_turns(row)
        if row.label is not None:
            self.labels[row.label] += 1

    def _add_turns(self, row: Conversation) -> None:
        answers = [len(message.content.strip()) for message in row.messages if message.role == "assistant"]
        prompts = [len(message.content) for message in row.messages if message.role in ("user", "tool")]
        self.with_system += any(message.role == "system" for message in row.messages)
        self.turns[len(answers) + len(prompts)] += 1
        self.prompts[sum(prompts)] += 1
        self.answers[sum(answers)] += 1
        if row.label is None and min(answers) < VERY_SHORT_CHARACTERS:
            self.very_short.add(row.number)

    def profile(self) -> Profile:
        invalid = {code: rows.count for code, rows in self.defects.items()}
        return Profile(
            rows=self.rows,
            invalid_rows=sum(invalid.values()),
            invalid=invalid,
            turns=_distribution(self.turns),
            prompt_characters=_distribution(self.prompts),
            answer_characters=_distribution(self.answers),
            text_characters=_distribution(self.texts),
            system_prompt_share=self.with_system / self.rows if self.rows else 0.0,
            labels=_labels(self.labels),
            duplicates=self.duplicates.count,
            contradictions=self.contradictions.count,
            very_short_answers=self.very_short.count,
            findings=self._findings(),
        )

    def _findings(self) -> list[Finding]:
        return [
            *findings.of_defects(self.defects, self.examples, self.rows),
            *findings.of_size(self.rows),
            *findings.of_repeats(self.duplicates, self.contradictions, labelled=bool(self.labels)),
            *findings.of_short_answers(self.very_short, VERY_SHORT_CHARACTERS),
            *findings.of_labels(self.labels),
        ]


def _distribution(lengths: Counter[int]) -> Distribution | None:
    total = lengths.total()
    if total == 0:
        return None
    ordered = sorted(lengths)

    def percentile(share: int) -> int:
        remaining = -(-total * share // 100)  # the rank, rounded up
        for length in ordered:
            remaining -= lengths[length]
            if remaining <= 0:
                return length
        raise AssertionError("a rank within the total is always reached")

    return Distribution(
        minimum=ordered[0],
        mean=sum(length * count for length, count in lengths.items()) / total,
        p50=percentile(50),
        p95=percentile(95),
        p99=percentile(99),
        maximum=ordered[-1],
    )


def _labels(counts: Counter[str]) -> Labels | None:
    if not counts:
        return None
    most_frequent = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return Labels(
        number=len(counts),
        counts=dict(most_frequent[:LABELS_SHOWN]),
        imbalance=most_frequent[0][1] / most_frequent[-1][1],
    )
