"""Bring a damaged lake back to a state that the same `extract` command completes. What is whole is never touched.

What is rebuilt from what: the root's metadata from the plan record, which holds a copy of the settings; the metadata of
arrays from the settings; a plan table or the plan record from planning again; a block from extracting it again.
"""

from dataclasses import dataclass, field
from typing import Any

import xxhash

import neuronlake.store.layout as layout
from neuronlake.store.create import committed_fingerprints, remove_temporary
from neuronlake.store.files import FileRecord, stale_temporaries, storage_error, sync_folder, write_file
from neuronlake.store.kept import MADE_BY, discard
from neuronlake.store.label_sets import LABELS, discard_label_set
from neuronlake.store.lock import writing
from neuronlake.store.objects import LakeName, LakePath, lake_path
from neuronlake.store.plan_record import DROPPED, PlanRecord, set_plan_aside, write_dropped
from neuronlake.store.spec import LakeSpec, dump_metadata, metadata_files, root_metadata
from neuronlake.store.verify import Findings, VerifyReport, block_files, examine


@dataclass(kw_only=True)
class RepairReport:
    """What `repair` found and did."""

    full: bool
    damage: list[str]
    """What was wrong, as `verify` lists it."""
    actions: list[str] = field(default_factory=list)
    """What was done, in this order."""
    redo: list[int] = field(default_factory=list)
    """Blocks that were dropped: the same `extract` command makes them again."""
    plan_again: bool = False
    """Whether the same `extract` command has to plan again before the lake can be read."""
    refused: list[str] = field(default_factory=list)
    """Damage that cannot be repaired, and why. Nothing was touched then."""
    after: VerifyReport | None = field(default=None, repr=False)
    """A quick check of what is left; None when the lake has to be planned again first, or nothing was done."""

    @property
    def ok(self) -> bool:
        """Whether what is left is whole: the same `extract` command completes it."""
        return not self.refused and (self.after is None or self.after.ok)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"ok": self.ok, **self.__dict__, "after": None if self.after is None else self.after.as_dict()}


class _RefusedError(Exception):
    """Nothing on the disk tells what would be right."""


def repair(path: LakeName, *, full: bool = False) -> RepairReport:
    """Drop what is damaged and cannot be restored; restore what can.

    Damaged blocks lose their commit record, then their shards. Metadata is written again from the settings, byte for byte.
    A damaged plan record is removed, and one whose tables are damaged set aside: planning is deterministic, the same
    `extract` command plans again and keeps every committed block if the plan comes out the same. Temporary files of dead
    processes and shards of uncommitted blocks are removed; files that are not ours never.

    Parameters
    ----------
    full
        Find damage by reading every byte, as ``verify(full=True)`` does. Otherwise by records and sizes.

    Raises
    ------
    InputError
        When there is no lake, somebody is writing to it, or its format is not ours.
    StorageError
        When the file system refuses.
    """
    root = lake_path(path)
    examine(root, full=False, writer=None)  # what is no lake is refused before anything is made in it
    with writing(root) as alone:
        found = examine(root, full=full, writer=None, alone=alone)
        report = RepairReport(full=full, damage=list(found.report.damage))
        if found.report.ok and not found.report.leftovers:
            return report
        try:
            _Repair(root, found, report).run()
        except _RefusedError as reason:
            report.refused.append(str(reason))
            return report
        except OSError as error:
            raise storage_error(error, root, "repair") from error
        if not report.plan_again:
            report.after = examine(root, full=False, writer=None).report
        return report


class _Repair:
    """One repair, from the findings to the actions."""

    def __init__(self, root: LakePath, found: Findings, report: RepairReport):
        self._root, self._found, self._report = root, found, report

    def run(self) -> None:
        plan, spec = self._decide()
        blocks = self._blocks_to_drop(spec)  # decided before anything is changed
        self._repair_root(plan, spec)
        self._repair_plan(plan, spec)
        if self._found.copy is not None and self._found.plan is not None:
            write_dropped(self._root, self._found.plan.fingerprint, self._found.dropped)
            self._did(f"{DROPPED}: written again")
        for block in blocks:
            self._drop_block(block, spec, self._found.blocks[block])
        for folder, name in self._found.kept:
            discard(self._root, name, kept=folder)
            self._did(f"{folder}/{name}: removed; {MADE_BY[folder]} again")
        for name in self._found.labels:
            discard_label_set(self._root, name)
            self._did(f"{LABELS}/{name}: removed; `neuronlake label` adds it again from its source")
        self._remove_leftovers(spec)

    def _decide(self) -> tuple[PlanRecord | None, LakeSpec | None]:
        """Find out which of the root's metadata and the plan record is right, if they are not both.

        Returns
        -------
        The plan record or None if it is not right, and the settings or None if only the `extract` command can give them.
        """
        found = self._found
        if found.root is None:
            return (None if found.record else found.plan), found.spec
        evidence = committed_fingerprints(self._root)
        if found.plan is None:
            if len(evidence) == 1:
                return None, found.spec if found.spec is not None and found.spec.fingerprint in evidence else None
            raise _RefusedError(
                f"{layout.ROOT_METADATA} and {layout.PLAN_RECORD} are both lost, and no commit record says of which lake: "
                "restore one of them from a copy"
            )
        plan, copy = found.plan, self._copy_of_root(found.plan)
        if evidence == {plan.fingerprint}:
            return plan, copy
        if found.spec is not None and evidence == {found.spec.fingerprint}:
            return None, found.spec  # the plan record is another lake's
        if evidence:
            raise _RefusedError(
                f"{layout.ROOT_METADATA}, {layout.PLAN_RECORD} and the commit records are not of one lake: "
                "restore the right ones from a copy"
            )
        same = found.spec is not None and found.spec.fingerprint == plan.fingerprint
        if found.spec is not None and not same and (found.metadata or found.tables):
            raise _RefusedError(
                f"{layout.ROOT_METADATA} and {layout.PLAN_RECORD} belong to different lakes, and nothing says which is "
                "right: restore the right one from a copy"
            )
        return plan, copy  # it is sealed by a checksum, and the files it lists are these

    def _copy_of_root(self, plan: PlanRecord) -> LakeSpec | None:
        if plan.spec is None:
            return None
        spec = LakeSpec.from_dict(plan.spec, self._root / layout.PLAN_RECORD)
        return spec.without(plan.dropped) if spec.fingerprint == plan.fingerprint else None

    def _blocks_to_drop(self, spec: LakeSpec | None) -> list[int]:
        blocks = sorted(self._found.blocks)
        if blocks and spec is None:
            raise _RefusedError(
                f"{len(blocks)} committed blocks are damaged, and {layout.ROOT_METADATA} too: restore that from a copy first"
            )
        if self._found.foreign and len(set(self._found.foreign)) == self._found.report.blocks_committed:
            raise _RefusedError(
                f"every committed block is of another lake than {layout.ROOT_METADATA} and {layout.PLAN_RECORD}: "
                "these are the wrong ones, restore the right ones from a copy"
            )
        return blocks

    def _repair_root(self, plan: PlanRecord | None, spec: LakeSpec | None) -> None:
        path = layout.ROOT_METADATA
        if self._found.root is None:
            return
        if plan is None:
            if spec is None:
                self._remove(path, "damaged; the same `extract` command writes it again")
            return
        copy = self._copy_of_root(plan)
        if copy is not None and self._restore(path, root_metadata(copy), plan.files.get(path)):
            return
        self._remove(path, "damaged, and the plan record has no copy; the same `extract` command writes it again")
        self._report.plan_again = True  # not that, but it cannot be read before either

    def _repair_plan(self, plan: PlanRecord | None, spec: LakeSpec | None) -> None:
        found = self._found
        if plan is None:
            if found.plan is None or found.record:
                reason = "damaged; the same `extract` command plans again"
            else:
                reason = "of another lake; the same `extract` command plans again"
            self._remove(layout.PLAN_RECORD, reason)
            self._report.plan_again = True
            return
        expected = {} if spec is None else metadata_files(spec, plan.blocks)
        lost = found.tables + [
            path
            for path in found.metadata
            if path not in expected or not self._restore(path, expected[path], plan.files[path])
        ]
        if lost:
            set_plan_aside(self._root)
            named = ", ".join(lost[:3]) + (" …" if len(lost) > 3 else "")
            self._did(f"{layout.PLAN_RECORD}: set aside, for only planning makes {named} again; committed blocks are kept")
            self._report.plan_again = True

    def _restore(self, path: str, metadata: dict[str, Any], promised: FileRecord | None) -> bool:
        """Write a metadata file again if that gives the bytes that the record promises."""
        data = dump_metadata(metadata)
        if promised is None or (len(data), xxhash.xxh3_64_hexdigest(data)) != (promised.bytes, promised.xxh3):
            return False
        write_file(self._root, path, [data])
        sync_folder((self._root / path).parent)
        self._did(f"{path}: written again")
        return True

    def _drop_block(self, block: int, spec: LakeSpec | None, problem: str) -> None:
        # The commit record first: from then on the block does not exist, whatever happens to its files.
        commit = self._root / layout.commit_path(block)
        commit.unlink(missing_ok=True)
        sync_folder(commit.parent)
        # Paths from the settings, not from the record: a record may list anything.
        for path in [] if spec is None else block_files(spec, block):
            (self._root / path).unlink(missing_ok=True)
        self._did(f"block {block}: dropped ({problem})")
        beyond = self._found.plan is not None and block >= self._found.plan.blocks
        if not beyond:
            self._report.redo.append(block)

    def _remove_leftovers(self, spec: LakeSpec | None) -> None:
        for temporary in stale_temporaries(self._root):
            remove_temporary(temporary)
        for path in self._found.report.leftovers:
            target = self._root / path
            if spec is not None or not target.name.startswith("c."):
                target.unlink(missing_ok=True)
                self._did(f"{path}: leftover, removed")

    def _remove(self, path: str, reason: str) -> None:
        target = self._root / path
        if target.exists():
            target.unlink()
            sync_folder(target.parent)
            self._did(f"{path}: removed ({reason})")
        else:
            self._did(f"{path}: missing; the same `extract` command makes it again")

    def _did(self, action: str) -> None:
        self._report.actions.append(action)
