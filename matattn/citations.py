"""What to cite: matattn, its networks, and the data behind a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matattn

_CRYSTALFORMER = """@inproceedings{crystalformer,
  title = {Crystalformer: Infinitely Connected Attention for Periodic Structure Encoding},
  author = {Taniai, Tatsunori and Igarashi, Ryo and Suzuki, Yuta and Chiba, Naoya and
            Saito, Kotaro and Ushiku, Yoshitaka and Ono, Kanta},
  booktitle = {The Twelfth International Conference on Learning Representations},
  year = {2024},
  eprint = {2403.11686},
  archivePrefix = {arXiv},
}"""
_MATERIALS_PROJECT = """@article{materials_project,
  title = {Commentary: The Materials Project: A materials genome approach to accelerating
           materials innovation},
  author = {Jain, Anubhav and Ong, Shyue Ping and Hautier, Geoffroy and Chen, Wei and
            Richards, William Davidson and Dacek, Stephen and Cholia, Shreyas and Gunter, Dan and
            Skinner, David and Ceder, Gerbrand and Persson, Kristin A.},
  journal = {APL Materials},
  volume = {1},
  pages = {011002},
  year = {2013},
  doi = {10.1063/1.4812323},
}"""
_MEGNET = """@article{megnet,
  title = {Graph Networks as a Universal Machine Learning Framework for Molecules and Crystals},
  author = {Chen, Chi and Ye, Weike and Zuo, Yunxing and Zheng, Chen and Ong, Shyue Ping},
  journal = {Chemistry of Materials},
  volume = {31},
  pages = {3564--3572},
  year = {2019},
  doi = {10.1021/acs.chemmater.9b01294},
}"""
_JARVIS = """@article{jarvis,
  title = {The joint automated repository for various integrated simulations ({JARVIS}) for
           data-driven materials design},
  author = {Choudhary, Kamal and Garrity, Kevin F. and Reid, Andrew C. E. and others},
  journal = {npj Computational Materials},
  volume = {6},
  pages = {173},
  year = {2020},
  doi = {10.1038/s41524-020-00440-1},
}"""
_CHGNET = """@article{chgnet,
  title = {{CHGNet} as a pretrained universal neural network potential for charge-informed
           atomistic modelling},
  author = {Deng, Bowen and Zhong, Peichen and Jun, KyuJung and Riebesell, Janosh and Han, Kevin
            and Bartel, Christopher J. and Ceder, Gerbrand},
  journal = {Nature Machine Intelligence},
  volume = {5},
  pages = {1031--1041},
  year = {2023},
  doi = {10.1038/s42256-023-00716-3},
}"""
_ELASTICITY = """@article{elasticity,
  title = {Charting the complete elastic properties of inorganic crystalline compounds},
  author = {de Jong, Maarten and Chen, Wei and Angsten, Thomas and others},
  journal = {Scientific Data},
  volume = {2},
  pages = {150009},
  year = {2015},
  doi = {10.1038/sdata.2015.9},
}"""
_MATBENCH = """@article{matbench,
  title = {Benchmarking materials property prediction methods: the {Matbench} test set and
           {Automatminer} reference algorithm},
  author = {Dunn, Alexander and Wang, Qi and Ganose, Alex and Dopp, Daniel and Jain, Anubhav},
  journal = {npj Computational Materials},
  volume = {6},
  pages = {138},
  year = {2020},
  doi = {10.1038/s41524-020-00406-3},
}"""
_PHONONS = """@article{phonons,
  title = {High-throughput density-functional perturbation theory phonons for inorganic materials},
  author = {Petretto, Guido and Dwaraknath, Shyam and Miranda, Henrique P. C. and others},
  journal = {Scientific Data},
  volume = {5},
  pages = {180065},
  year = {2018},
  doi = {10.1038/sdata.2018.65},
}"""
_OPTIMADE = """@article{optimade,
  title = {{OPTIMADE}, an {API} for exchanging materials data},
  author = {Andersen, Casper W. and Armiento, Rickard and Blokhin, Evgeny and others},
  journal = {Scientific Data},
  volume = {8},
  pages = {217},
  year = {2021},
  doi = {10.1038/s41597-021-00974-z},
}"""
_FLARE = """@misc{flare,
  title = {{FLARE}: Fast Low-rank Attention Routing Engine},
  author = {Puri, Vedant and Joglekar, Aditya and Bandreddi, Sri Datta Ganesh and Ferguson, Kevin
            and Chen, Yu-hsuan and Zhang, Yongjie Jessica and Kara, Levent Burak},
  year = {2025},
  eprint = {2508.12594},
  archivePrefix = {arXiv},
}"""
_COULGAT = """@misc{coulgat,
  title = {{CoulGAT}: An Experiment on Interpretability of Graph Attention Networks},
  author = {Gokden, Burc},
  year = {2019},
  eprint = {1912.08409},
  archivePrefix = {arXiv},
}"""
_MATTEXT = """@misc{mattext,
  title = {{MatText}: Do Language Models Need More than Text & Scale for Materials Modeling?},
  author = {Alampara, Nawaf and Miret, Santiago and Jablonka, Kevin Maik},
  year = {2024},
  eprint = {2406.17295},
  archivePrefix = {arXiv},
}"""
_MATTER = """@misc{matter,
  title = {{MATTER}: tokenization that keeps the words of materials whole},
  year = {2025},
  eprint = {2506.11115},
  archivePrefix = {arXiv},
}"""
_MULMS = """@inproceedings{mulms,
  title = {{MuLMS}: A Multi-Layer Annotated Text Corpus for Information Extraction in the Materials
           Science Domain},
  author = {Schrader, Timo Pierre and Finco, Matteo and Gr{\\"u}newald, Stefan and Hildebrand, Felix
            and Friedrich, Annemarie},
  booktitle = {Proceedings of the Second Workshop on Information Extraction from Scientific
               Publications},
  year = {2023},
}"""
_OLIVETTI = """@inproceedings{olivetti,
  title = {The Materials Science Procedural Text Corpus: Annotating Materials Synthesis Procedures
           with Shallow Semantic Structures},
  author = {Mysore, Sheshera and Jensen, Zachary and Kim, Edward and others},
  booktitle = {Proceedings of the 13th Linguistic Annotation Workshop},
  year = {2019},
}"""
_SOFC = """@inproceedings{sofc,
  title = {The {SOFC-Exp} Corpus and Neural Approaches to Information Extraction in the Materials
           Science Domain},
  author = {Friedrich, Annemarie and Adel, Heike and Tomazic, Federico and others},
  booktitle = {Proceedings of the 58th Annual Meeting of the Association for Computational
               Linguistics},
  year = {2020},
}"""
_QM7 = (
    """@article{blum_reymond,
  title = {970 Million Druglike Small Molecules for Virtual Screening in the Chemical Universe
           Database {GDB-13}},
  author = {Blum, Lorenz C. and Reymond, Jean-Louis},
  journal = {Journal of the American Chemical Society},
  volume = {131},
  pages = {8732},
  year = {2009},
}""",
    """@article{rupp,
  title = {Fast and Accurate Modeling of Molecular Atomization Energies with Machine Learning},
  author = {Rupp, Matthias and Tkatchenko, Alexandre and M{\\"u}ller, Klaus-Robert and von
            Lilienfeld, O. Anatole},
  journal = {Physical Review Letters},
  volume = {108},
  pages = {058301},
  year = {2012},
}""",
)
_QM9 = """@article{qm9,
  title = {Quantum chemistry structures and properties of 134 kilo molecules},
  author = {Ramakrishnan, Raghunathan and Dral, Pavlo O. and Rupp, Matthias and von Lilienfeld, O.
            Anatole},
  journal = {Scientific Data},
  volume = {1},
  pages = {140022},
  year = {2014},
}"""
_QM9NMR = """@article{qm9nmr,
  title = {Revving up 13{C} {NMR} shielding predictions across chemical space: benchmarks for
           atoms-in-molecules kernel machine learning with new data for 134 kilo molecules},
  author = {Gupta, Amit and Chakraborty, Sabyasachi and Ramakrishnan, Raghunathan},
  journal = {Machine Learning: Science and Technology},
  volume = {2},
  pages = {035010},
  year = {2021},
}"""
_MD17 = """@article{md17,
  title = {Machine learning of accurate energy-conserving molecular force fields},
  author = {Chmiela, Stefan and Tkatchenko, Alexandre and Sauceda, Huziel E. and others},
  journal = {Science Advances},
  volume = {3},
  pages = {e1603015},
  year = {2017},
}"""
_CHAMPS = """@misc{champs,
  title = {Predicting Molecular Properties},
  author = {{CHAMPS}},
  howpublished = {Kaggle competition},
  year = {2019},
}"""
_FACTORED_ATTENTION = """@article{factored_attention,
  title = {Are queries and keys always relevant? {A} case study on transformer wave functions},
  author = {Rende, Riccardo and Viteritti, Luciano Loris},
  journal = {Machine Learning: Science and Technology},
  volume = {6},
  pages = {010501},
  year = {2025},
  doi = {10.1088/2632-2153/ada1a0},
}"""
_NETKET = """@article{netket,
  title = {{NetKet} 3: Machine Learning Toolbox for Many-Body Quantum Systems},
  author = {Vicentini, Filippo and Hofmann, Damian and Szab{\\'o}, Attila and others},
  journal = {SciPost Physics Codebases},
  pages = {7},
  year = {2022},
  doi = {10.21468/SciPostPhysCodeb.7},
}"""
_BLURRED_SAMPLING = """@misc{blurred_sampling,
  title = {Removing nodal and support-mismatch pathologies in Variational Monte Carlo via blurred
           sampling},
  author = {Wan, Zhou-Quan and Wiersema, Roeland and Zhang, Shiwei},
  year = {2026},
  eprint = {2603.18148},
  archivePrefix = {arXiv},
}"""
_VARBENCH = """@article{varbench,
  title = {Variational benchmarks for quantum many-body problems},
  author = {Wu, Dian and Rossi, Riccardo and Vicentini, Filippo and others},
  journal = {Science},
  volume = {386},
  pages = {296},
  year = {2024},
}"""
_GEO_FNO = """@article{geo_fno,
  title = {Fourier Neural Operator with Learned Deformations for {PDE}s on General Geometries},
  author = {Li, Zongyi and Huang, Daniel Zhengyu and Liu, Burigede and Anandkumar, Anima},
  journal = {Journal of Machine Learning Research},
  volume = {24},
  number = {388},
  year = {2023},
}"""
_FNO = """@inproceedings{fno,
  title = {Fourier Neural Operator for Parametric Partial Differential Equations},
  author = {Li, Zongyi and Kovachki, Nikola and Azizzadenesheli, Kamyar and Liu, Burigede and
            Bhattacharya, Kaushik and Stuart, Andrew and Anandkumar, Anima},
  booktitle = {International Conference on Learning Representations},
  year = {2021},
  eprint = {2010.08895},
  archivePrefix = {arXiv},
}"""
_DRIVAERML = """@misc{drivaerml,
  title = {{DrivAerML}: High-Fidelity Computational Fluid Dynamics Dataset for Road-Car External
           Aerodynamics},
  author = {Ashton, Neil and Mockett, Charles and Fuchs, Marian and others},
  year = {2024},
  eprint = {2408.11969},
  archivePrefix = {arXiv},
}"""
_DRIVAERML_NAMES = tuple(
    f"drivaerml_{points}"
    for points in ("10k", "40k", "50k", "100k", "200k", "300k", "400k", "500k", "1m")
)
_FLARE_PLUS_PLUS = """@misc{flare_plus_plus,
  title = {{FLARE++}},
  note = {the latent queries that depend on the mesh, model.queries=dynamic},
  eprint = {2608.11519},
  archivePrefix = {arXiv},
}"""
NETWORKS = {
    "CoulGAT": (_COULGAT,),
    "CrystalText": (_MATTEXT,),
    "Crystalformer": (_CRYSTALFORMER,),
    "FLARE": (_FLARE, _FLARE_PLUS_PLUS),
    "FullAttention": (_FLARE,),  # its network, without its attention
    "MaterialDetector": (_MATTER,),
    "TokenClassifier": (_MATTER,),
    "TransformerWaveFunction": (_FACTORED_ATTENTION, _NETKET, _BLURRED_SAMPLING),
}
DATA = {
    "mp2018": (_MATERIALS_PROJECT, _MEGNET),
    "mp2018_subset": (_MATERIALS_PROJECT, _MEGNET),
    "mp_bulk_modulus": (_MATERIALS_PROJECT, _ELASTICITY),
    "mp_shear_modulus": (_MATERIALS_PROJECT, _ELASTICITY),
    "materials_project": (_MATERIALS_PROJECT,),
    "optimade": (_OPTIMADE,),
    "jarvis_dft3d": (_JARVIS,),
    "jarvis_dft3d_subset": (_JARVIS,),
    "matbench": (_MATBENCH,),
    "matbench_phonons": (_MATBENCH, _PHONONS),
    "prototypes": (_CHGNET, _MATERIALS_PROJECT),
    "geo_fno_elasticity": (_GEO_FNO,),
    "geo_fno_pipe": (_GEO_FNO,),
    "geo_fno_airfoil": (_GEO_FNO,),
    "geo_fno_plasticity": (_GEO_FNO,),
    "fno_darcy": (_FNO,),
    "lpbf": (_FLARE,),
    "qm7": _QM7,
    "qm7_couplings": _QM7,
    "qm9": (_QM9,),
    "qm9nmr": (_QM9NMR, _QM9),
    "md17": (_MD17,),
    "champs": (_CHAMPS, _QM9),
    "materials_text": (_MULMS, _OLIVETTI, _SOFC),
    "narratives": (_CHGNET,),
    "geometry_probe": (_MATTEXT,),
    "j1j2": (_VARBENCH,),  # published energies; the Hamiltonian is the data
} | dict.fromkeys(_DRIVAERML_NAMES, (_DRIVAERML, _FLARE))
_SCIKIT_FEM = """@article{scikit_fem,
  title = {scikit-fem: A {Python} package for finite element assembly},
  author = {Gustafsson, Tom and McBain, G. D.},
  journal = {Journal of Open Source Software},
  volume = {5},
  pages = {2369},
  year = {2020},
  doi = {10.21105/joss.02369},
}"""
_GENERATED = {  # by matattn; after whose random field or hole
    "darcy": (_SCIKIT_FEM, _FNO),
    "moving_laser_heat": (_SCIKIT_FEM,),
    "neo_hookean_plate": (_SCIKIT_FEM, _GEO_FNO),
    "plate_with_hole": (_SCIKIT_FEM, _GEO_FNO),
}
DATA |= _GENERATED
# Of data, and so of models that were trained on them.
LICENCES = (
    dict.fromkeys(
        ("mp2018", "mp2018_subset", "mp_bulk_modulus", "mp_shear_modulus", "materials_project"),
        "CC-BY 4.0",
    )
    | dict.fromkeys(("prototypes", "narratives", "lpbf", *_GENERATED), "MIT")
    | {"materials_text": "CC BY-SA 4.0"}
    | dict.fromkeys(_DRIVAERML_NAMES, "CC-BY-SA 4.0")
)


def bibtex(config: Mapping[str, Any] | None = None) -> str:
    """BibTeX of matattn, and of the network and the data of a bundle's config (else all networks).

    Data that matattn does not know are named in a comment.
    """
    software = (
        "@software{matattn,\n  title = {matattn},\n  author = {{The matattn developers}},\n"
        f"  version = {{{matattn.__version__}}},\n}}"
    )
    if config is None:
        known = (entry for entries in NETWORKS.values() for entry in entries)
        return "\n\n".join([software, *dict.fromkeys(known)])
    data = config.get("data", {}).get("name", "unknown data")
    task_of = data.partition("_")[0]  # matbench_gap as matbench, j1j2_square_4x4_0.5 as j1j2
    behind = DATA.get(data) or DATA.get(
        task_of, (f"% trained on {data}: cite where these data come from",)
    )
    return "\n\n".join([software, *NETWORKS[config["network"]], *behind])
