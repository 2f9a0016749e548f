"""Published results of REINVENT on PMO: Gao et al. 2022 (2206.12411), table of AUC top-10."""

#: Oracle -> mean and standard deviation of the AUC top-10 over five runs of 10,000 calls.
REINVENT_AUC_TOP_10: dict[str, tuple[float, float]] = {
    "albuterol_similarity": (0.882, 0.006),
    "amlodipine_mpo": (0.635, 0.035),
    "celecoxib_rediscovery": (0.713, 0.067),
    "deco_hop": (0.666, 0.044),
    "fexofenadine_mpo": (0.784, 0.006),
    "isomers_c7h8n2o2": (0.852, 0.036),
    "isomers_c9h10n2o2pf2cl": (0.642, 0.054),
    "median1": (0.356, 0.009),
    "median2": (0.276, 0.008),
    "mestranol_similarity": (0.618, 0.048),
    "osimertinib_mpo": (0.837, 0.009),
    "perindopril_mpo": (0.537, 0.016),
    "qed": (0.941, 0.000),
    "ranolazine_mpo": (0.760, 0.009),
    "scaffold_hop": (0.560, 0.019),
    "sitagliptin_mpo": (0.021, 0.003),
    "thiothixene_rediscovery": (0.534, 0.013),
    "troglitazone_rediscovery": (0.441, 0.032),
    "valsartan_smarts": (0.178, 0.358),
    "zaleplon_mpo": (0.358, 0.062),
}
