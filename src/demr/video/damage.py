"""What was lost while decoding a file, and how that was treated, in one line."""

from collections.abc import Sequence
from dataclasses import dataclass


class DamagedVideoWarning(UserWarning):
    """Something is wrong with a video file; the message says how it was treated."""


@dataclass
class Damage:
    """Packets that could not be used.

    Attributes:
        packets: How many.
        first_s: Until when everything decoded.
        again_s: From when on what decodes is read again; None if nothing is.
        reason: What was wrong with the last of them.
    """

    packets: int = 0
    first_s: float = 0.0
    again_s: float | None = None
    reason: str = "it holds no frame"
    _is_new: bool = False

    def add(self, reason: str, good_s: float) -> None:
        """Note a loss; all before ``good_s`` is decoded."""
        self.first_s = min(self.first_s, good_s) if self.packets else good_s
        self.packets += 1
        self.reason, self._is_new = reason, True

    def passed(self, time_s: float) -> None:
        """Note a packet that can be read; it shows at ``time_s``."""
        if self._is_new:
            self.again_s, self._is_new = max(time_s, self.first_s), False

    def line(self, cut_s: float | None, whole_s: float | None, notes: Sequence[str] = ()) -> str:
        """What to tell; empty if all is well.

        Args:
            cut_s: Where the file ends too early, in seconds, if it does.
            whole_s: How long it should be, in seconds, if that is known.
            notes: What else was wrong.
        """
        parts, facts = list(notes), []
        if self.packets:
            facts.append(f"{self.packets} packet{'s' * (self.packets > 1)} unreadable")
        if cut_s is not None:
            of = "" if whole_s is None else f" of {whole_s:.2f} s"
            facts.append(f"nothing after {cut_s:.2f} s{of}")
        if facts:
            until_s = self.first_s if self.packets else cut_s
            used = "the part before was used"
            # Behind the end packets may be there that nothing can be made of.
            is_read_on = cut_s is None or (self.again_s is not None and self.again_s < cut_s)
            if self.packets and self.again_s is not None and is_read_on:
                used = f"what decodes from {self.again_s:.2f} s on was used, too"
            parts.append(
                f"damaged video, frames are good until {until_s:.2f} s ({', '.join(facts)}); {used}"
            )
        return "; ".join(parts)
