"""Write the workflows of tests/data/workflows: ten published shapes, each task one step.

    .venv/bin/python tests/data/make_workflows.py

The shapes, not the data, are taken from what was published of them; each
function below says what leads to what, level by level, and where that stands:

- Juve 2013: G. Juve, A. Chervenak, E. Deelman, S. Bharathi, G. Mehta, K. Vahi,
  "Characterizing and profiling scientific workflows", Future Generation
  Computer Systems 29 (3), 2013, figures 2 to 6.
- WfInstances: the recorded runs of https://github.com/wfcommons/WfInstances,
  described in T. Coleman, H. Casanova, L. Pottier, M. Kaushik, E. Deelman,
  R. Ferreira da Silva, "WfCommons: A framework for enabling scientific workflow
  research and development", Future Generation Computer Systems 128, 2022.

Each file is an array of commands to POST, without a job_id: all run
`workflow_node`, roots on {"weight": n}, the others on what feeds them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path

import exesys
from exesys.flow import Task

PLACE = Path(__file__).parent / "workflows"


class Shape:
    """A workflow of tasks that are counted by kind: mAdd-1, mAdd-2, …"""

    def __init__(self) -> None:
        self.flow = exesys.Workflow()
        self._counts: Counter[str] = Counter()
        self._roots = 0

    def task(self, kind: str, after: Task | Iterable[Task] = ()) -> Task:
        feeders = [after] if isinstance(after, Task) else list(after)
        self._counts[kind] += 1
        self._roots += not feeders
        data = None if feeders else {"weight": self._roots}
        return self.flow.step("workflow_node", data, after=feeders, name=f"{kind}-{self._counts[kind]}")

    def tasks(self, kind: str, count: int) -> list[Task]:
        return [self.task(kind) for _ in range(count)]

    def each(self, kind: str, after: Iterable[Task]) -> list[Task]:
        """Add one task after each of these."""
        return [self.task(kind, task) for task in after]

    def chain(self, kinds: str, after: Task) -> Task:
        """Add one task after the other."""
        for kind in kinds.split():
            after = self.task(kind, after)
        return after


def montage(shape: Shape, columns: int = 16, rows: int = 11) -> None:
    """Mosaics of the sky (Juve 2013). Here of images in a grid, where each overlaps those around it.

    1 mProjectPP, one an image; 2 mDiffFit, one for two images that overlap;
    3 mConcatFit, of all; 4 mBgModel; 5 mBackground, one an image, from the
    model and the projection; 6 mImgtbl, of all; 7 mAdd, of it and all
    mBackground; 8 mShrink; 9 mJPEG.
    """
    projected = dict(zip(product(range(columns), range(rows)), shape.tasks("mProjectPP", columns * rows), strict=True))
    overlaps = [
        (projected[x, y], projected[x + right, y + down])
        for x, y in projected
        for right, down in ((1, 0), (0, 1), (1, 1), (1, -1))
        if (x + right, y + down) in projected
    ]
    fitted = [shape.task("mDiffFit", two) for two in overlaps]
    model = shape.chain("mBgModel", shape.task("mConcatFit", fitted))
    corrected = [shape.task("mBackground", (model, image)) for image in projected.values()]
    table = shape.task("mImgtbl", corrected)
    shape.chain("mShrink mJPEG", shape.task("mAdd", [table, *corrected]))


def epigenomics(shape: Shape, chunks: Iterable[int] = (5, 6)) -> None:
    """State of the genome's DNA (Juve 2013; several lanes of the sequencer as in WfInstances).

    1 fastQSplit, one a lane; 2 filterContams, one a chunk; 3 sol2sanger;
    4 fastq2bfq; 5 map; 6 mapMerge, one a lane; 7 mapMerge, of all lanes;
    8 maqIndex; 9 pileup.
    """
    lanes = []
    for count in chunks:
        split = shape.task("fastQSplit")
        mapped = [shape.chain("filterContams sol2sanger fastq2bfq map", split) for _ in range(count)]
        lanes.append(shape.task("mapMerge", mapped))
    shape.chain("maqIndex pileup", shape.task("mapMerge", lanes))


def cybershake(shape: Shape, variations: Iterable[int] = (110, 120, 130, 137)) -> None:
    """Earthquake hazards (Juve 2013).

    1 ExtractSGT, one a rupture; 2 SeismogramSynthesis, one a variation of it;
    3 PeakValCalcOkaya, one for each of these, and ZipSeis, of all of them;
    4 ZipPSA, of all peak values.
    """
    seismograms = []
    for count in variations:
        seismograms += shape.each("SeismogramSynthesis", [shape.task("ExtractSGT")] * count)
    peaks = shape.each("PeakValCalcOkaya", seismograms)
    shape.task("ZipSeis", seismograms)
    shape.task("ZipPSA", peaks)


def ligo(shape: Shape, groups: int = 5, size: int = 11) -> None:
    """The search for inspiralling binary stars (Juve 2013).

    1 TmpltBank; 2 Inspiral, one for each; 3 Thinca, one a group, which also
    takes the first of the next group; 4 TrigBank, after its group's Thinca;
    5 Inspiral, one for each; 6 Thinca, grouped in the same way.
    """

    def coincide(inspirals: list[Task]) -> Iterator[Task]:
        for first in range(0, len(inspirals), size):
            yield shape.task("Thinca", inspirals[first : first + size + 1])

    banks = shape.tasks("TmpltBank", groups * size)
    found = list(coincide(shape.each("Inspiral", banks)))
    triggers = [shape.task("TrigBank", thinca) for thinca in found for _ in range(size)]
    list(coincide(shape.each("Inspiral", triggers)))


def sipht(shape: Shape, patsers: Iterable[int] = (17, 19)) -> None:
    """The search for small untranslated RNAs, here in two replicons (Juve 2013).

    1 Patser, many; Transterm, Findterm, RNAMotif, Blast; 2 Patser_concate, of
    all Patser; SRNA, of the other four; 3 FFN_Parse, Blast_candidate,
    Blast_QRNA, Blast_paralogues, each of SRNA; 4 Blast_synteny, of SRNA and
    FFN_Parse; 5 SRNA_annotate, of all but FFN_Parse.
    """
    for count in patsers:
        sites = shape.task("Patser_concate", shape.tasks("Patser", count))
        srna = shape.task("SRNA", [shape.task(kind) for kind in ("Transterm", "Findterm", "RNAMotif", "Blast")])
        synteny = shape.task("Blast_synteny", (srna, shape.task("FFN_Parse", srna)))
        others = [shape.task(f"Blast_{kind}", srna) for kind in ("candidate", "QRNA", "paralogues")]
        shape.task("SRNA_annotate", [sites, srna, synteny, *others])


def genome(shape: Shape, chromosomes: int = 8, parts: int = 10, populations: int = 7) -> None:
    """Overlaps of mutations in the 1000 Genomes Project (WfInstances: 1000genome).

    1 individuals, one a part of a chromosome; sifting, one a chromosome;
    2 individuals_merge, one a chromosome; 3 mutation_overlap and frequency,
    one each for a chromosome and population, of individuals_merge and sifting.
    """
    for _ in range(chromosomes):
        merged = shape.task("individuals_merge", shape.tasks("individuals", parts))
        both = (merged, shape.task("sifting"))
        for _ in range(populations):
            shape.task("mutation_overlap", both)
            shape.task("frequency", both)


def seismology(shape: Shape, pairs: int = 100) -> None:
    """Cross-correlation of seismograms (WfInstances: seismology, 100p).

    1 sG1IterDecon, one for a pair of signals; 2 siftSTFByMisfit, of all.
    """
    shape.task("siftSTFByMisfit", shape.tasks("sG1IterDecon", pairs))


def soykb(shape: Shape, samples: int = 15, chromosomes: int = 10) -> None:
    """Variants of the soybean's genome (WfInstances: soykb, 30fastq-10ch).

    1 alignment_to_reference, one a sample; 2 sort_sam; 3 dedup; 4 add_replace;
    5 realign_target_creator; 6 indel_realign, of the two before it;
    7 haplotype_caller, one for a sample and chromosome; 8 genotype_gvcfs, one
    a chromosome, and merge_gcvf, of all; 9 combine_variants, of all
    genotype_gvcfs; 10 select_variants_indel and select_variants_snp;
    11 filtering_indel and filtering_snp.
    """
    called: list[list[Task]] = []
    for _ in range(samples):
        replaced = shape.chain("sort_sam dedup add_replace", shape.task("alignment_to_reference"))
        realigned = shape.task("indel_realign", (replaced, shape.task("realign_target_creator", replaced)))
        called.append(shape.each("haplotype_caller", [realigned] * chromosomes))
    genotypes = [shape.task("genotype_gvcfs", of_one) for of_one in zip(*called, strict=True)]
    shape.task("merge_gcvf", [task for of_sample in called for task in of_sample])
    combined = shape.task("combine_variants", genotypes)
    for kind in ("indel", "snp"):
        shape.chain(f"select_variants_{kind} filtering_{kind}", combined)


def blast(shape: Shape, parts: int = 100) -> None:
    """Look-up of sequences (WfInstances: makeflow/blast, medium).

    1 split_fasta; 2 blastall, one a part; 3 cat_blast and cat, each of all.
    """
    looked_up = shape.each("blastall", [shape.task("split_fasta")] * parts)
    shape.task("cat_blast", looked_up)
    shape.task("cat", looked_up)


def srasearch(shape: Shape, accessions: int = 30, together: int = 25) -> None:
    """Alignment of archived reads (WfInstances: srasearch, 30a).

    1 bowtie2-build; fasterq-dump, one an accession; 2 bowtie2, one an
    accession, of both; 3 merge, of 25 at most; 4 merge, of these.
    """
    index = shape.task("bowtie2-build")
    reads = shape.tasks("fasterq-dump", accessions)
    aligned = [shape.task("bowtie2", (index, read)) for read in reads]
    shape.task("merge", [shape.task("merge", aligned[n : n + together]) for n in range(0, accessions, together)])


SHAPES = {
    "1000genome": genome,
    "blast": blast,
    "cybershake": cybershake,
    "epigenomics": epigenomics,
    "ligo": ligo,
    "montage": montage,
    "seismology": seismology,
    "sipht": sipht,
    "soykb": soykb,
    "srasearch": srasearch,
}


def written(name: str) -> str:
    """Return what the file of a shape holds: one command a line."""
    shape = Shape()
    SHAPES[name](shape)
    lines = [json.dumps(command, separators=(",", ":")) for command in shape.flow.commands()]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> None:
    PLACE.mkdir(exist_ok=True)
    for name in SHAPES:
        (PLACE / f"{name}.json").write_text(written(name), encoding="utf-8")


if __name__ == "__main__":
    main()
