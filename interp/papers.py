"""The papers that methods are after, by their number at arXiv, as BibTeX needs them.

A method's docstring names its papers by number; what they are called and who wrote them stands here once, with all
authors of the published version where there is one. A method may bring a paper of its own in its record
(`Method.papers`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """One entry of a bibliography."""

    number: str
    key: str
    authors: str
    title: str
    year: int

    def bibtex(self) -> str:
        """The entry."""
        return (
            f"@misc{{{self.key},\n  author = {{{self.authors}}},\n  title = {{{{{self.title}}}}},\n"
            f"  year = {{{self.year}}},\n  eprint = {{{self.number}}},\n  archivePrefix = {{arXiv}},\n}}\n"
        )


def bibtex(papers: Iterable[Paper]) -> str:
    """Their entries in the order of their keys, each once."""
    return "\n".join(paper.bibtex() for paper in sorted(set(papers), key=lambda paper: paper.key))


_KNOWN = (
    Paper("1312.6034", "simonyan2013saliency", "Simonyan, Karen and Vedaldi, Andrea and Zisserman, Andrew",
          "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps", 2013),
    Paper("1703.01365", "sundararajan2017ig", "Sundararajan, Mukund and Taly, Ankur and Yan, Qiqi",
          "Axiomatic Attribution for Deep Networks", 2017),
    Paper("1704.03976", "miyato2017vat", "Miyato, Takeru and Maeda, Shin-ichi and Koyama, Masanori and Ishii, Shin",
          "Virtual Adversarial Training: A Regularization Method for Supervised and Semi-Supervised Learning", 2017),
    Paper("1706.03825", "smilkov2017smoothgrad",
          "Smilkov, Daniel and Thorat, Nikhil and Kim, Been and Viégas, Fernanda and Wattenberg, Martin",
          "SmoothGrad: removing noise by adding noise", 2017),
    Paper("1712.01312", "louizos2017l0", "Louizos, Christos and Welling, Max and Kingma, Diederik P.",
          "Learning Sparse Neural Networks through L_0 Regularization", 2017),
    Paper("1712.08268", "li2017salient", "Li, Heyi and Tian, Yunke and Mueller, Klaus and Chen, Xin",
          "Beyond saliency: understanding convolutional neural networks from saliency prediction on layer-wise"
          " relevance propagation", 2017),
    Paper("1802.10399", "dai2018vib", "Dai, Bin and Zhu, Chen and Guo, Baining and Wipf, David",
          "Compressing Neural Networks using the Variational Information Bottleneck", 2018),
    Paper("1805.12233", "dhamdhere2018conductance",
          "Dhamdhere, Kedar and Sundararajan, Mukund and Yan, Qiqi", "How Important Is a Neuron?", 2018),
    Paper("1905.00414", "kornblith2019cka",
          "Kornblith, Simon and Norouzi, Mohammad and Lee, Honglak and Hinton, Geoffrey",
          "Similarity of Neural Network Representations Revisited", 2019),
    Paper("1905.09418", "voita2019heads",
          "Voita, Elena and Talbot, David and Moiseev, Fedor and Sennrich, Rico and Titov, Ivan",
          "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned", 2019),
    Paper("1905.10650", "michel2019sixteen", "Michel, Paul and Levy, Omer and Neubig, Graham",
          "Are Sixteen Heads Really Better than One?", 2019),
    Paper("1906.04341", "clark2019bert",
          "Clark, Kevin and Khandelwal, Urvashi and Levy, Omer and Manning, Christopher D.",
          "What Does BERT Look At? An Analysis of BERT's Attention", 2019),
    Paper("1908.10693", "masson2019ddsketch", "Masson, Charles and Rim, Jee E. and Lee, Homin K.",
          "DDSketch: A Fast and Fully-Mergeable Quantile Sketch with Relative-Error Guarantees", 2019),
    Paper("2004.10102", "kobayashi2020norms",
          "Kobayashi, Goro and Kuribayashi, Tatsuki and Yokoi, Sho and Inui, Kentaro",
          "Attention is Not Only a Weight: Analyzing Transformers with Vector Norms", 2020),
    Paper("2004.12265", "vig2020causal",
          "Vig, Jesse and Gehrmann, Sebastian and Belinkov, Yonatan and Qian, Sharon and Nevo, Daniel and Sakenis,"
          " Simas and Huang, Jason and Singer, Yaron and Shieber, Stuart",
          "Causal Mediation Analysis for Interpreting Neural NLP: The Case of Gender Bias", 2020),
    Paper("2004.14837", "chen2020alignment",
          "Chen, Yun and Liu, Yang and Chen, Guanhua and Jiang, Xin and Liu, Qun",
          "Accurate Word Alignment Induction from Neural Machine Translation", 2020),
    Paper("2009.12064", "kitada2020attention", "Kitada, Shunsuke and Iyatomi, Hitoshi",
          "Attention Meets Perturbations: Robust and Interpretable Attention with Adversarial Training", 2020),
    Paper("2012.09838", "chefer2020beyond", "Chefer, Hila and Gur, Shir and Wolf, Lior",
          "Transformer Interpretability Beyond Attention Visualization", 2020),
    Paper("2103.15679", "chefer2021generic", "Chefer, Hila and Gur, Shir and Wolf, Lior",
          "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", 2021),
    Paper("2104.08763", "kitada2021virtual", "Kitada, Shunsuke and Iyatomi, Hitoshi",
          "Making Attention Mechanisms More Robust and Interpretable with Virtual Adversarial Training", 2021),
    Paper("2111.10659", "gu2021patch", "Gu, Jindong and Tresp, Volker and Qin, Yao",
          "Are Vision Transformers Robust to Patch Perturbations?", 2021),
    Paper("2202.07304", "ali2022conservative",
          "Ali, Ameen and Schnake, Thomas and Eberle, Oliver and Montavon, Grégoire and Müller, Klaus-Robert and Wolf,"
          " Lior", "XAI for Transformers: Better Explanations through Conservative Propagation", 2022),
    Paper("2209.11895", "olsson2022induction",
          "Olsson, Catherine and Elhage, Nelson and Nanda, Neel and Joseph, Nicholas and others",
          "In-context Learning and Induction Heads", 2022),
    Paper("2211.00593", "wang2022ioi",
          "Wang, Kevin and Variengien, Alexandre and Conmy, Arthur and Shlegeris, Buck and Steinhardt, Jacob",
          "Interpretability in the Wild: a Circuit for Indirect Object Identification in GPT-2 small", 2022),
    Paper("2303.02536", "geiger2023das",
          "Geiger, Atticus and Wu, Zhengxuan and Potts, Christopher and Icard, Thomas and Goodman, Noah D.",
          "Finding Alignments Between Interpretable Causal Variables and Distributed Neural Representations", 2023),
    Paper("2303.13731", "li2023vit",
          "Li, Yiran and Wang, Junpeng and Dai, Xin and Wang, Liang and Yeh, Chin-Chia Michael and Zheng, Yan and"
          " Zhang, Wei and Ma, Kwan-Liu",
          "How Does Attention Work in Vision Transformers? A Visual Analytics Attempt", 2023),
    Paper("2304.05969", "goldowsky2023path",
          "Goldowsky-Dill, Nicholas and MacLeod, Chris and Sato, Lucas and Arora, Aryaman",
          "Localizing Model Behavior with Path Patching", 2023),
    Paper("2304.14767", "geva2023recall",
          "Geva, Mor and Bastings, Jasmijn and Filippova, Katja and Globerson, Amir",
          "Dissecting Recall of Factual Associations in Auto-Regressive Language Models", 2023),
    Paper("2304.14997", "conmy2023acdc",
          "Conmy, Arthur and Mavor-Parker, Augustine N. and Lynch, Aengus and Heimersheim, Stefan and"
          " Garriga-Alonso, Adrià", "Towards Automated Circuit Discovery for Mechanistic Interpretability", 2023),
    Paper("2306.17848", "lee2023mixing",
          "Lee, Ariel N. and Bargal, Sarah Adel and Kasera, Janavi and Sclaroff, Stan and Saenko, Kate and others",
          "Hardwiring ViT Patch Selectivity into CNNs using Patch Mixing", 2023),
    Paper("2307.09458", "lieberum2023chinchilla",
          "Lieberum, Tom and Rahtz, Matthew and Kramár, János and Nanda, Neel and Irving, Geoffrey and Shah, Rohin"
          " and Mikulik, Vladimir",
          "Does Circuit Analysis Interpretability Scale? Evidence from Multiple Choice Capabilities in Chinchilla",
          2023),
    Paper("2307.15049", "zheng2023masks",
          "Zheng, Kecheng and Wu, Wei and Feng, Ruili and Zhu, Kai and Liu, Jiawei and Zhao, Deli and Zha, Zheng-Jun"
          " and Chen, Wei and Shen, Yujun",
          "Regularized Mask Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models", 2023),
    Paper("2308.07707", "foster2023dampening", "Foster, Jack and Schoepf, Stefan and Brintrup, Alexandra",
          "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", 2023),
    Paper("2309.16042", "zhang2024patching", "Zhang, Fred and Nanda, Neel",
          "Towards Best Practices of Activation Patching in Language Models: Metrics and Methods", 2023),
    Paper("2309.17410", "patil2023deleted", "Patil, Vaidehi and Hase, Peter and Bansal, Mohit",
          "Can Sensitive Information Be Deleted From LLMs? Objectives for Defending Against Extraction Attacks", 2023),
    Paper("2310.06824", "marks2023truth", "Marks, Samuel and Tegmark, Max",
          "The Geometry of Truth: Emergent Linear Structure in Large Language Model Representations of True/False"
          " Datasets", 2023),
    Paper("2310.10348", "syed2023attribution", "Syed, Aaquib and Rager, Can and Conmy, Arthur",
          "Attribution Patching Outperforms Automated Circuit Discovery", 2023),
    Paper("2311.16922", "leng2023vcd",
          "Leng, Sicong and Zhang, Hang and Chen, Guanzheng and Li, Xin and Lu, Shijian and Miao, Chunyan"
          " and Bing, Lidong",
          "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding", 2023),
    Paper("2311.17030", "makelov2023illusion",
          "Makelov, Aleksandar and Lange, Georg and Geiger, Atticus and Nanda, Neel",
          "Is This the Subspace You Are Looking for? An Interpretability Illusion for Subspace Activation Patching",
          2023),
    Paper("2402.04347", "zhang2024hedgehog",
          "Zhang, Michael and Bhatia, Kush and Kumbong, Hermann and Ré, Christopher",
          "The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry", 2024),
    Paper("2402.05602", "achtibat2024attnlrp",
          "Achtibat, Reduan and Hatefi, Sayed Mohammad Vakilzadeh and Dreyer, Maximilian and Jain, Aakriti and Wiegand,"
          " Thomas and Lapuschkin, Sebastian and Samek, Wojciech",
          "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", 2024),
    Paper("2402.10685", "lu2024longheads",
          "Lu, Yi and Zhou, Xin and He, Wei and Zhao, Jun and Ji, Tao and Gui, Tao and Zhang, Qi and Huang, Xuanjing",
          "LongHeads: Multi-Head Attention is Secretly a Long Context Processor", 2024),
    Paper("2403.00745", "kramar2024atp", "Kramár, János and Lieberum, Tom and Shah, Rohin and Nanda, Neel",
          "AtP*: An efficient and scalable method for localizing LLM behaviour to components", 2024),
    Paper("2403.00824", "ferrando2024routes", "Ferrando, Javier and Voita, Elena",
          "Information Flow Routes: Automatically Interpreting Language Models at Scale", 2024),
    Paper("2403.17806", "hanna2024faith", "Hanna, Michael and Pezzelle, Sandro and Belinkov, Yonatan",
          "Have Faith in Faithfulness: Going Beyond Circuit Overlap When Finding Model Mechanisms", 2024),
    Paper("2403.19647", "marks2024sparse",
          "Marks, Samuel and Rager, Can and Michaud, Eric J. and Belinkov, Yonatan and Bau, David and Mueller, Aaron",
          "Sparse Feature Circuits: Discovering and Editing Interpretable Causal Graphs in Language Models", 2024),
    Paper("2404.15574", "wu2024retrieval",
          "Wu, Wenhao and Wang, Yizhong and Xiao, Guangxuan and Peng, Hao and Fu, Yao",
          "Retrieval Head Mechanistically Explains Long-Context Factuality", 2024),
    Paper("2406.05276", "dutta2024vtrans", "Dutta, Oshin and Gupta, Ritvik and Agarwal, Sumeet",
          "VTrans: Accelerating Transformer Compression with Variational Information Bottleneck based Pruning", 2024),
    Paper("2406.12649", "wang2024pace", "Wang, Hengyi and Tan, Shiwei and Wang, Hao",
          "Probabilistic Conceptual Explainers: Trustworthy Conceptual Explanations for Vision Foundation Models",
          2024),
    Paper("2406.15765", "yu2024act",
          "Yu, Zhongzhi and Wang, Zheng and Fu, Yonggan and Shi, Huihong and Shaikh, Khalid and Lin, Yingyan Celine",
          "Unveiling and Harnessing Hidden Attention Sinks: Enhancing Large Language Models without Training through"
          " Attention Calibration", 2024),
    Paper("2406.16778", "bhaskar2024edge",
          "Bhaskar, Adithya and Wettig, Alexander and Friedman, Dan and Chen, Danqi",
          "Finding Transformer Circuits with Edge Pruning", 2024),
    Paper("2407.00886", "hsu2024cdt",
          "Hsu, Aliyah R. and Zhou, Georgia and Cherapanamjeri, Yeshwanth and Huang, Yaxuan and Odisho, Anobel Y. and"
          " Carroll, Peter R. and Yu, Bin",
          "Efficient Automated Circuit Discovery in Transformers using Contextual Decomposition", 2024),
    Paper("2407.21771", "liu2024paying", "Liu, Shi and Zheng, Kecheng and Chen, Wei",
          "Paying More Attention to Image: A Training-Free Method for Alleviating Hallucination in LVLMs", 2024),
    Paper("2409.09951", "li2024optimal", "Li, Maximilian and Janson, Lucas",
          "Optimal ablation for interpretability", 2024),
    Paper("2410.04514", "gong2024damro", "Gong, Xuan and Ming, Tianshi and Wang, Xinpeng and Wei, Zhihua",
          "DAMRO: Dive into the Attention Mechanism of LVLM to Reduce Object Hallucination", 2024),
    Paper("2410.06606", "hong2024dissecting",
          "Hong, Yihuai and Zou, Yuelin and Hu, Lijie and Zeng, Ziqian and Wang, Di and Yang, Haiqin",
          "Dissecting Fine-Tuning Unlearning in Large Language Models", 2024),
    Paper("2410.10781", "gu2024sinks",
          "Gu, Xiangming and Pang, Tianyu and Du, Chao and Liu, Qian and Zhang, Fengzhuo and Du, Cunxiao and Wang, Ye"
          " and Lin, Min", "When Attention Sink Emerges in Language Models: An Empirical View", 2024),
    Paper("2410.11842", "jin2024moh", "Jin, Peng and Zhu, Bo and Yuan, Li and Yan, Shuicheng",
          "MoH: Multi-Head Attention as Mixture-of-Head Attention", 2024),
    Paper("2410.13032", "shi2024hypothesis",
          "Shi, Claudia and Beltran-Velez, Nicolas and Nazaret, Achille and Zheng, Carolina and Garriga-Alonso, Adrià"
          " and Jesson, Andrew and Makar, Maggie and Blei, David",
          "Hypothesis Testing the Circuit Hypothesis in LLMs", 2024),
    Paper("2410.19258", "fu2024heads",
          "Fu, Yu and Cai, Zefan and Asi, Abedelkadir and Xiong, Wayne and Dong, Yue and Xiao, Wen",
          "Not All Heads Matter: A Head-Level KV Cache Compression Method with Integrated Retrieval and Reasoning",
          2024),
    Paper("2407.00886", "hsu2024cdt",
          "Hsu, Aliyah R. and Zhou, Georgia and Cherapanamjeri, Yeshwanth and Huang, Yaxuan and Odisho, Anobel Y. and"
          " Carroll, Peter R. and Yu, Bin",
          "Efficient Automated Circuit Discovery in Transformers using Contextual Decomposition", 2024),
    Paper("2411.00204", "rezaei2024restor",
          "Rezaei, Keivan and Chandu, Khyathi and Feizi, Soheil and Choi, Yejin and Brahman, Faeze and"
          " Ravichander, Abhilasha",
          "RESTOR: Knowledge Recovery in Machine Unlearning", 2024),
    Paper("2502.04577", "haklay2025position",
          "Haklay, Tal and Orgad, Hadas and Bau, David and Mueller, Aaron and Belinkov, Yonatan",
          "Position-aware Automatic Circuit Discovery", 2025),
    Paper("2502.06852", "zhang2025eapgp",
          "Zhang, Lin and Dong, Wenshuo and Zhang, Zhuoran and Yang, Shu and Hu, Lijie and Liu, Ninghao and Zhou, Pan"
          " and Wang, Di",
          "EAP-GP: Mitigating Saturation Effect in Gradient-based Automated Circuit Identification", 2025),
    Paper("2502.09992", "nie2025llada", "Nie, Shen and others", "Large Language Diffusion Models", 2025),
    Paper("2508.15487", "ye2025dream", "Ye, Jiacheng and others", "Dream 7B: Diffusion Large Language Models", 2025),
    Paper("2411.07635", "fan2024rala", "Fan, Qihang and Huang, Huaibo and He, Ran",
          "Breaking the Low-Rank Dilemma of Linear Attention", 2024),
    Paper("2412.06590", "han2024inline",
          "Han, Dongchen and Pu, Yifan and Xia, Zhuofan and Han, Yizeng and Pan, Xuran and Li, Xiu and Lu, Jiwen and"
          " Song, Shiji and Huang, Gao",
          "Bridging the Divide: Reconsidering Softmax and Linear Attention", 2024),
    Paper("2412.13949", "he2024cracking",
          "He, Jinghan and Zhu, Kuan and Guo, Haiyun and Fang, Junfeng and Hua, Zhenglin and Jia, Yuheng and Tang, Ming"
          " and Chua, Tat-Seng and Wang, Jinqiao",
          "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", 2024),
    Paper("2501.12206", "arif2025paint",
          "Arif, Kazi Hasan Ibn and Dip, Sajib Acharjee and Hussain, Khizar and Zhang, Lang and Thomas, Chris",
          "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model", 2025),
    Paper("2502.12962", "ye2025infinite", "Ye, Xiaoju and Wang, Zhichun and Wang, Jingyuan",
          "Infinite Retrieval: Attention Enhanced LLMs in Long-Context Processing", 2025),
    Paper("2503.03321", "kang2025sink",
          "Kang, Seil and Kim, Jinyeong and Kim, Junhyeok and Hwang, Seong Jae",
          "See What You Are Told: Visual Attention Sink in Large Multimodal Models", 2025),
    Paper("2503.06991", "kim2025forgetting", "Kim, Yongwoo and Cha, Sungmin and Kim, Donghyun",
          "Are We Truly Forgetting? A Critical Re-examination of Machine Unlearning Evaluation Protocols", 2025),
    Paper("2504.13151", "mueller2025mib",
          "Mueller, Aaron and Geiger, Atticus and Wiegreffe, Sarah and others",
          "MIB: A Mechanistic Interpretability Benchmark", 2025),
    Paper("2505.01456", "patil2025unlok",
          "Patil, Vaidehi and Sung, Yi-Lin and Hase, Peter and Peng, Jie and Chen, Tianlong and Bansal, Mohit",
          "Unlearning Sensitive Information in Multimodal LLMs: Benchmark and Attack-Defense Evaluation", 2025),
    Paper("2505.07293", "hua2025influence", "Hua, Kai and Wu, Steven and Zhang, Ge and Shen, Ke",
          "AttentionInfluence: Adopting Attention Head Influence for Weak-to-Strong Pretraining Data Selection", 2025),
    Paper("2505.17329", "adeli2025brain", "Adeli, Hossein and Sun, Minni and Kriegeskorte, Nikolaus",
          "Transformer brain encoders explain human high-level visual responses", 2025),
    Paper("2505.17630", "edin2025gim",
          "Edin, Joakim and Csordás, Róbert and Ruotsalo, Tuukka and Wu, Zhengxuan and Maistro, Maria and Huang, Jing"
          " and Maaløe, Lars",
          "GIM: Improved Interpretability for Large Language Models", 2025),
    Paper("2506.09944", "zhang2025query",
          "Zhang, Wuwei and Yin, Fangcong and Yen, Howard and Chen, Danqi and Ye, Xi",
          "Query-Focused Retrieval Heads Improve Long-Context Reasoning and Re-ranking", 2025),
    Paper("2506.10978", "ahn2025headhunter", "Ahn, Donghoon and others",
          "Where and How to Perturb: On the Design of Perturbation Guidance in Diffusion and Flow Models", 2025),
    Paper("2506.10178", "psomas2025probing", "Psomas, Bill and Christopoulos, Dionysis and Baltzi, Eirini and others",
          "Attention, Please! Revisiting Attentive Probing Through the Lens of Efficiency", 2025),
    Paper("2508.05211", "yang2025vflowopt", "Yang, Sihan and others",
          "VFlowOpt: A Token Pruning Framework for LMMs with Visual Information Flow-Guided Optimization", 2025),
    Paper("2508.21258", "jafari2025relp",
          "Rezaei Jafari, Farnoush and Eberle, Oliver and Khakzar, Ashkan and Nanda, Neel",
          "RelP: Faithful and Efficient Circuit Discovery in Language Models via Relevance Patching", 2025),
    Paper("2509.06461", "ge2025carve", "Ge, Yuyao and Liu, Shenghua and Wang, Yiwei and Mei, Lingrui and others",
          "Focusing by Contrastive Attention: Enhancing VLMs' Visual Reasoning", 2025),
    Paper("2509.18010", "papi2025half",
          "Papi, Sara and Fucci, Dennis and Gaido, Marco and Negri, Matteo and Bentivogli, Luisa",
          "Cross-Attention is Half Explanation in Speech-to-Text Models", 2025),
    Paper("2509.22650", "kukleva2025refam",
          "Kukleva, Anna and Simsar, Enis and Tonioni, Alessio and Naeem, Muhammad Ferjad and others",
          "RefAM: Attention Magnets for Zero-Shot Referral Segmentation", 2025),
    Paper("2602.22581", "bian2026ibcircuit",
          "Bian, Tian and Niu, Yifan and Yuan, Chaohao and Piao, Chengzhi and Wu, Bingzhe and Huang, Long-Kai and"
          " Rong, Yu and Xu, Tingyang and Cheng, Hong and Li, Jia",
          "IBCircuit: Towards Holistic Circuit Discovery with Information Bottleneck", 2026),
    Paper("2303.08112", "belrose2023tuned",
          "Belrose, Nora and Furman, Zach and Smith, Logan and Halawi, Danny and Ostrovsky, Igor and McKinney, Lev"
          " and Biderman, Stella and Steinhardt, Jacob",
          "Eliciting Latent Predictions from Transformers with the Tuned Lens", 2023),
    Paper("2307.15771", "mcgrath2023hydra",
          "McGrath, Thomas and Rahtz, Matthew and Kramár, János and Mikulik, Vladimir and Legg, Shane",
          "The Hydra Effect: Emergent Self-repair in Language Model Computations", 2023),
    Paper("2310.04625", "mcdougall2023suppression",
          "McDougall, Callum and Conmy, Arthur and Rushing, Cody and McGrath, Thomas and Nanda, Neel",
          "Copy Suppression: Comprehensively Understanding an Attention Head", 2023),
    Paper("2310.05916", "gandelsman2023clip",
          "Gandelsman, Yossi and Efros, Alexei A. and Steinhardt, Jacob",
          "Interpreting CLIP's Image Representation via Text-Based Decomposition", 2023),
    Paper("2310.15213", "todd2023vectors",
          "Todd, Eric and Li, Millicent L. and Sen Sharma, Arnab and Mueller, Aaron and Wallace, Byron C. and Bau,"
          " David",
          "Function Vectors in Large Language Models", 2023),
    Paper("2312.09230", "gould2023successor",
          "Gould, Rhys and Ong, Euan and Ogden, George and Conmy, Arthur",
          "Successor Heads: Recurring, Interpretable Attention Heads In The Wild", 2023),
    Paper("2402.12865", "katz2024backward", "Katz, Shahar and Belinkov, Yonatan and Geva, Mor and Wolf, Lior",
          "Backward Lens: Projecting Language Model Gradients into the Vocabulary Space", 2024),
    Paper("2402.15390", "rushing2024repair", "Rushing, Cody and Nanda, Neel",
          "Explorations of Self-Repair in Language Models", 2024),
    Paper("2405.04156", "garcia2024acronyms",
          "García-Carrasco, Jorge and Maté, Alejandro and Trujillo, Juan",
          "How does GPT-2 Predict Acronyms? Extracting and Understanding a Circuit via Mechanistic Interpretability",
          2024),
    Paper("2406.02128", "cabannes2024iteration",
          "Cabannes, Vivien and Arnal, Charles and Bouaziz, Wassim and Yang, Alice and Charton, Francois and Kempe,"
          " Julia",
          "Iteration Head: A Mechanistic Study of Chain-of-Thought", 2024),
    Paper("2410.13708", "zhou2024safety", "Zhou, Zhenhong and others",
          "On the Role of Attention Heads in Large Language Model Safety", 2024),
    Paper("2510.02219", "tran2025core", "Tran, Linh and Li, Yulong and Florian, Radu and Sun, Wei",
          "Contrastive Retrieval Heads Improve Attention-Based Re-Ranking", 2025),
    Paper("2510.21518", "basile2025pursuit", "Basile, Lorenzo and others",
          "Head Pursuit: Probing Attention Specialization in Multimodal Transformers", 2025),
)  # fmt: skip
PAPERS = {paper.number: paper for paper in _KNOWN}
