"""What all retrievers share: checked arguments, one sentence or many, encoded videos or files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar, overload, runtime_checkable

from demr.answers.inference import Progress
from demr.encoders import Encoder, VideoFeatures
from demr.encoders.frames import encode_noting_damage
from demr.errors import InputError
from demr.machine.terminal import clock
from demr.search.queries import check_path, check_queries
from demr.search.result import Answer, SearchResult
from demr.video.reading import watch_decoding


@runtime_checkable
class Searchable(Protocol):
    """A video that can be asked many questions."""

    @property
    def path(self) -> str:
        """The file, as it was named."""
        ...

    @property
    def duration_s(self) -> float:
        """In seconds."""
        ...

    @property
    def clip_s(self) -> float:
        """Length of a clip."""
        ...


V = TypeVar("V", bound=Searchable)


class Retriever(ABC, Generic[V]):
    """Find moments in videos; what differs is how a video is prepared and a query answered."""

    # What `prepare` returns.
    _kind: type[V]

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """What describes videos and queries."""

    @abstractmethod
    def prepare(self, features: VideoFeatures, path: str, notes: tuple[str, ...] = ()) -> V:
        """Make stored features searchable.

        Raises:
            FeatureError: If they do not fit the encoder.
        """

    @abstractmethod
    def _answer_all(
        self, video: V, queries: Sequence[str], top: int, progress: Progress
    ) -> list[Answer]:
        """Answers to checked queries, in order."""

    @abstractmethod
    def result(self, video: V, answers: Sequence[Answer]) -> SearchResult:
        """Bundle answers with what they are about."""

    def encode_video(
        self, path: str | Path, *, progress: Callable[[float], None] | None = None
    ) -> V:
        """Decode a video and describe its clips; do this once and search many times.

        Args:
            path: Any video file.
            progress: Called with the second of the video that was reached.

        Raises:
            InputError: If this is no path.
            VideoError: If the file cannot be decoded.
        """
        file = check_path(path)
        with watch_decoding(progress):
            features, notes = encode_noting_damage(self.encoder, file)
        return self.prepare(features, str(path), notes + self._notes())

    def _notes(self) -> tuple[str, ...]:
        """What limits the trust in every answer about a video that this retriever encodes."""
        return ()

    @overload
    def search(
        self, video: V | str | Path, query: str, *, top: int = 5, progress: Progress | None = None
    ) -> Answer: ...

    @overload
    def search(
        self,
        video: V | str | Path,
        query: list[str] | tuple[str, ...],
        *,
        top: int = 5,
        progress: Progress | None = None,
    ) -> list[Answer]: ...

    def search(
        self,
        video: V | str | Path,
        query: str | list[str] | tuple[str, ...],
        *,
        top: int = 5,
        progress: Progress | None = None,
    ) -> Answer | list[Answer]:
        """Find the moments that a sentence, or each of several, describes.

        Args:
            video: Encoded, or a path (which is then decoded each time).
            query: One sentence or many; many are answered in batches.
            top: Most moments to return for a query.
            progress: Called now and then with the share of the search that is done.

        Returns:
            One answer for a sentence, a list for a list.

        Raises:
            InputError: If an argument is of another kind, a query is empty, has no word or too
                many, or ``top`` is below 1; before anything is read.
            FeatureError: If the video was encoded for another model.
            VideoError: If the video cannot be decoded.
        """
        queries = [query] if isinstance(query, str) else query
        check_queries(queries, top)
        if not isinstance(video, self._kind):
            if isinstance(video, Searchable):
                raise InputError(
                    video.path,
                    expected=f"a video that a {type(self).__name__} encoded",
                    got=type(video).__name__,
                    remedy="encode it with the retriever that is to search it",
                )
            video = self.encode_video(video)
        answers = self._answer_all(video, queries, int(top), progress or _ignore)
        return answers[0] if isinstance(query, str) else answers

    def search_file(
        self,
        path: str | Path,
        queries: Sequence[str],
        *,
        top: int = 5,
        tell: Callable[[str], None] | None = None,
    ) -> SearchResult:
        """Encode a video, ask it all queries, and bundle the answers.

        Args:
            path: Any video file.
            queries: Sentences.
            top: Most moments to return for a query.
            tell: Called with what is being done, in words.

        Raises:
            InputError: As :meth:`search` does.
            VideoError: If the file cannot be decoded.
        """
        asked = [queries] if isinstance(queries, str) else list(queries)
        check_queries(asked, top)
        name = check_path(path).name

        def reached(second: float) -> None:
            if tell is not None:
                tell(f"reading {name}: {clock(second)}")

        def searched(share: float) -> None:
            if tell is not None:
                tell(f"searching {name}: {share:.0%}")

        video = self.encode_video(path, progress=reached)
        return self.result(video, self.search(video, asked, top=top, progress=searched))


def _ignore(share: float) -> None:
    del share
