"""Sentences of a study's report that do not depend on its results: what was done, and whose method it is."""

PAPER_ACCURACY = 0.91
"""Of the paper's best classifier (Llama 3, four classes, in the final layer), as a secondary source has it."""

METHODS = {
    "gradient": "gradient × activation of the log-probability of the next word's first token, one backward pass",
    "ig": "integrated gradients of the log-probability of the next word's first token, layer by layer from zero",
    "activation_share": "share of tokens among whose strongest 5 % by |activation|·‖output weights‖ the neuron is",
    "auroc": "AUROC of the activation at the token before the word; no gradients",
}

OF_PAPER = (
    "Read in the paper (arXiv 2511.06519) only through a secondary source: integrated gradients of the next-word "
    "prediction over the MLP neurons of all layers; of each sample the top 5 %; per tag the most frequent neurons; a "
    "chi-squared filter; CAV and CAR; a classifier (SVM) per layer, up to 0.91 in the final layer; disrupting key "
    "neurons harms the prediction of their part of speech. The model there is Llama 3, the classes verb, noun, "
    "adjective and adverb.",
    "Inferred by us: that its 100 neurons are per tag and layer, since 1.1 % of all neurons are reported as key "
    "neurons. Whether its classifier tells the token's own word or the next one is not known to us: both are given "
    "(shift 0 and 1).",
)
OF_OTHERS = (
    "Dai et al. 2022 (knowledge neurons): zero baseline, one layer at a time. Kim et al. 2018 (CAV). Crabbé & van der "
    "Schaar 2022 (CAR). Hewitt & Liang 2019 (control task, selectivity). Benjamini & Hochberg 1995 (q). Cramér's V. "
    "Davison & Hinkley 1997 (Monte-Carlo p). Lex et al. 2014 (UpSet figure).",
)
OF_OURS = (
    "The default method, gradient × activation, is not the paper's: it is the first-order form of integrated "
    "gradients, and some hundred times faster. --method ig is the paper's, but of the log-probability, with "
    "Gauss–Legendre nodes and refinement, and nothing but the predicting position is changed.",
    "A hit must be positive; equally many predictions per tag, as far as there are so many; q and V compare a tag "
    "with all other tags of the label.",
    "Neurons are chosen, and classifiers learned, on training documents; classifiers are tested, and text is "
    "predicted, on documents that were held out from both, or on another lake. Where documents are held out, one training "
    "document goes unused by the classifiers.",
    "The most frequent tag of the word type, random neurons, the control task, layer-matched random lesions and "
    "intervals by document bootstrap: controls that we know of no counterpart for in the paper.",
    "The best layer is the best on what is measured: its accuracy is a maximum over layers. With --test, the same layer "
    "is tested on a further lake without being chosen again.",
)
