"""The numbers that the paper prints, as data: to stand beside what is measured, never in its place.

Metric names are those of `osdhuman.metrics.table.METRICS`. An asterisk marks a method that the authors retrained on
PERSONA.
"""

SOURCE = "Gong et al., Human Body Restoration with One-Step Diffusion Model and A New Benchmark, ICML 2025"

CANDIDATES = 440_000  # crops that are scored, "approximately" (3.1)
TRAIN, VAL, TEST = 109_053, 4_216, 3_000  # images of PERSONA (3.1, 4.2)
PERSONS_PER_IMAGE = 3.4154  # (1)


def _rows(metrics: str, text: str) -> dict[str, dict[str, float]]:
    """A table typed as in the paper: the row's name, then one value for each metric."""
    rows = (line.split() for line in text.strip().splitlines())
    return {name: dict(zip(metrics.split(), map(float, values), strict=True)) for name, *values in rows}


TABLE_1 = _rows(
    "brisque niqe clipiqa maniqa musiq",
    """
    OID          19.8621 3.6611 0.4775 0.5940 60.4947
    VOC          21.2764 3.7155 0.6071 0.7011 68.6073
    COCO         15.2091 3.7774 0.6778 0.6844 69.5428
    Object365    17.6128 3.6315 0.6273 0.6817 67.7270
    CrowdHuman   20.4306 2.9283 0.5160 0.6587 63.6830
    DeepFashion  42.1884 6.9403 0.5448 0.6515 71.1873
    iDesigner    25.8027 4.6227 0.5922 0.6666 69.3768
    PERSONA      10.3758 2.8659 0.7632 0.7198 74.7808
    """,
)

# Tables 2 and 3 measure PERSONA-Val against its ground truth, PERSONA-Test without one.
VAL_METRICS = "dists lpips psnr_y ssim_y fid clipiqa maniqa musiq niqe"
TEST_METRICS = "clipiqa maniqa musiq niqe"

MULTI_STEP = ("DiffBIR", "SeeSR", "PASD", "ResShift", "ResShift*")
ONE_STEP = ("SinSR", "SinSR*", "OSEDiff", "OSEDiff*", "OSDHuman")

TABLE_2_VAL = _rows(
    VAL_METRICS,
    """
    DiffBIR    0.1475 0.3047 21.52 0.5718 14.8418 0.8080 0.7030 76.4751 3.9752
    SeeSR      0.1379 0.2851 21.31 0.5955 15.0063 0.7785 0.6993 76.8001 3.6125
    PASD       0.1891 0.3587 22.17 0.6154 26.7405 0.5950 0.6090 67.3329 4.6249
    ResShift   0.1795 0.3313 22.10 0.6157 30.7865 0.5931 0.5833 69.5889 4.7448
    ResShift*  0.1822 0.3372 21.73 0.5969 29.4177 0.6721 0.6121 71.9257 4.8061
    SinSR      0.1691 0.3187 21.92 0.5967 22.9041 0.6372 0.5712 70.0839 4.4392
    SinSR*     0.1844 0.3348 21.54 0.5766 34.5773 0.7033 0.5819 71.2943 4.6294
    OSEDiff    0.1510 0.2824 21.81 0.6182 17.6308 0.6875 0.6639 74.0774 3.5858
    OSEDiff*   0.1476 0.2756 22.23 0.6342 17.2200 0.7034 0.6976 73.7636 3.9980
    OSDHuman   0.1414 0.2627 22.41 0.6363 16.5987 0.7295 0.6934 76.1256 3.5750
    """,
)
TABLE_2_TEST = _rows(
    TEST_METRICS,
    """
    DiffBIR    0.7287 0.6812 73.2505 4.9820
    SeeSR      0.6716 0.6698 73.2988 4.0228
    PASD       0.5765 0.6703 72.1972 3.8728
    ResShift   0.5544 0.6101 69.4611 4.8438
    ResShift*  0.6130 0.6174 70.2313 4.8735
    SinSR      0.5882 0.6010 69.0157 4.7510
    SinSR*     0.6936 0.5962 69.9375 4.9873
    OSEDiff    0.6734 0.6919 73.5634 4.4600
    OSEDiff*   0.6874 0.7052 73.1611 4.4261
    OSDHuman   0.7155 0.6977 73.7694 4.1287
    """,
)
TABLE_2 = {
    name: {
        "type": "multi-step" if name in MULTI_STEP else "one-step",
        "val": TABLE_2_VAL[name],
        "test": TABLE_2_TEST[name],
    }
    for name in MULTI_STEP + ONE_STEP
}

TABLE_3 = {  # rows: the training data
    "LSDIR": {
        "val": _rows(VAL_METRICS, "LSDIR 0.1521 0.2692 22.51 0.6271 17.5615 0.7229 0.6618 74.4998 3.6461")["LSDIR"],
        "test": _rows(TEST_METRICS, "LSDIR 0.6781 0.6964 73.1266 4.6382")["LSDIR"],
    },
    "PERSONA": {"val": TABLE_2_VAL["OSDHuman"], "test": TABLE_2_TEST["OSDHuman"]},
}

TABLE_4 = _rows(  # rows: the prompt extractor and what it reads in training; on PERSONA-Test
    TEST_METRICS,
    """
    null     0.7016 0.7226 73.1735 5.0651
    dape     0.6625 0.7014 72.3104 4.9455
    hfie_hq  0.7111 0.6747 69.9992 5.5031
    hfie_lq  0.7155 0.6977 73.7694 4.1287
    """,
)

# Category -> (tags, distinct tags). The text of 4.1 gives the sums, 1,452,088 and 3,365, and 13.32 tags per image.
FIGURE_7 = {
    "People": (494_852, 585),
    "Objects": (303_236, 825),
    "Clothing": (201_947, 240),
    "Sports": (107_425, 175),
    "Activities": (90_362, 208),
    "Buildings": (74_504, 387),
    "Outdoor": (71_047, 314),
    "Food": (49_262, 323),
    "Colors": (46_257, 61),
    "Animals": (13_196, 247),
}
