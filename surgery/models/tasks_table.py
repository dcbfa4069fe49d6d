"""Which class a model type has for a task, and where it holds its body. A test compares it with the classes.

Generated from transformers 5.23.0: its auto classes' own mappings, and the classes built on the meta device. A class
whose body differs from its type's bare model in more than whole parts that it leaves out is not here.
"""

from __future__ import annotations

from collections.abc import Mapping

# The prefix under which other classes of the type hold the body -> the bare models, each after its model type.
BODIES: Mapping[str, str] = {
    "": """
        lighton_ocr/LightOnOcrModel
    """,
    "albert": """
        albert/AlbertModel
    """,
    "backbone": """
        falcon_mamba/FalconMambaModel mamba/MambaModel mamba2/Mamba2Model xlstm/xLSTMModel
    """,
    "bert": """
        bert/BertModel big_bird/BigBirdModel megatron-bert/MegatronBertModel
    """,
    "biogpt": """
        biogpt/BioGptModel
    """,
    "bros": """
        bros/BrosModel
    """,
    "canine": """
        canine/CanineModel
    """,
    "convbert": """
        convbert/ConvBertModel
    """,
    "cpmant": """
        cpmant/CpmAntModel
    """,
    "data2vec_text": """
        data2vec-text/Data2VecTextModel
    """,
    "deberta": """
        deberta-v2/DebertaV2Model deberta/DebertaModel
    """,
    "distilbert": """
        distilbert/DistilBertModel
    """,
    "electra": """
        electra/ElectraModel
    """,
    "ernie": """
        ernie/ErnieModel
    """,
    "esmc": """
        esmc/EsmcModel
    """,
    "fnet": """
        fnet/FNetModel
    """,
    "funnel": """
        funnel/FunnelModel
    """,
    "git": """
        git/GitModel
    """,
    "gpt_neox": """
        gpt_neox/GPTNeoXModel
    """,
    "gpt_neox_japanese": """
        gpt_neox_japanese/GPTNeoXJapaneseModel
    """,
    "gte": """
        gte/GteModel
    """,
    "ibert": """
        ibert/IBertModel
    """,
    "layoutlm": """
        layoutlm/LayoutLMModel
    """,
    "layoutlmv3": """
        layoutlmv3/LayoutLMv3Model
    """,
    "led": """
        led/LEDModel
    """,
    "lilt": """
        lilt/LiltModel
    """,
    "longformer": """
        longformer/LongformerModel
    """,
    "luke": """
        luke/LukeModel
    """,
    "lxmert": """
        lxmert/LxmertModel
    """,
    "markuplm": """
        markuplm/MarkupLMModel
    """,
    "mobilebert": """
        mobilebert/MobileBertModel
    """,
    "model": """
        afmoe/AfmoeModel apertus/ApertusModel arcee/ArceeModel aria/AriaModel aria_text/AriaTextModel
        audioflamingo3/AudioFlamingo3Model axk1/AXK1Model axk2/AXK2Model bailing_hybrid/BailingHybridModel
        bamba/BambaModel bart/BartModel beam/BeamModel bigbird_pegasus/BigBirdPegasusModel bitnet/BitNetModel
        blenderbot-small/BlenderbotSmallModel blenderbot/BlenderbotModel blt/BltModel canary/CanaryModel
        cohere/CohereModel cohere2/Cohere2Model cohere2_moe/Cohere2MoeModel cohere2_vision/Cohere2VisionModel
        cohere_asr/CohereAsrModel cosmos3_edge/Cosmos3EdgeModel cosmos3_omni/Cosmos3OmniModel cwm/CwmModel
        deepseek_v2/DeepseekV2Model deepseek_v3/DeepseekV3Model deepseek_v32/DeepseekV32Model
        deepseek_v4/DeepseekV4Model deepseek_vl/DeepseekVLModel deepseek_vl_hybrid/DeepseekVLHybridModel dia/DiaModel
        diffllama/DiffLlamaModel doge/DogeModel dots3_note/Dots3NoteModel dots3_note_text/Dots3NoteTextModel
        ernie4_5/Ernie4_5Model ernie4_5_moe/Ernie4_5_MoeModel ernie4_5_vl_moe/Ernie4_5_VLMoeModel
        eurobert/EuroBertModel exaone4/Exaone4Model exaone4_5/Exaone4_5_Model exaone_moe/ExaoneMoeModel
        falcon_h1/FalconH1Model flex_olmo/FlexOlmoModel flint/FlintModel florence2/Florence2Model
        fun_asr_nano/FunAsrNanoModel fuyu/FuyuModel gemma/GemmaModel gemma2/Gemma2Model gemma3/Gemma3Model
        gemma3_text/Gemma3TextModel gemma3n_text/Gemma3nTextModel gemma4/Gemma4Model gemma4_text/Gemma4TextModel
        gemma4_unified/Gemma4UnifiedModel gemma4_unified_text/Gemma4UnifiedTextModel glm/GlmModel glm4/Glm4Model
        glm46v/Glm46VModel glm4_moe/Glm4MoeModel glm4_moe_lite/Glm4MoeLiteModel glm4v/Glm4vModel
        glm4v_moe/Glm4vMoeModel glm5_next/Glm5NextModel glm_moe_dsa/GlmMoeDsaModel glm_ocr/GlmOcrModel
        glmasr/GlmAsrModel glmga/Glm46VModel got_ocr2/GotOcr2Model gpt_oss/GptOssModel granite/GraniteModel
        granite_docling/GraniteDoclingModel granite_speech/GraniteSpeechModel
        granite_speech_plus/GraniteSpeechPlusModel granite_swa/GraniteSWAModel granitemoe/GraniteMoeModel
        granitemoe_swa/GraniteMoeSWAModel granitemoehybrid/GraniteMoeHybridModel
        granitemoeshared/GraniteMoeSharedModel helium/HeliumModel higgs_audio_v2/HiggsAudioV2ForConditionalGeneration
        hrm_text/HrmTextModel hy_v3/HYV3Model hy_v4/HYV4Model hyperclovax/HyperCLOVAXModel
        hyperclovax_vision_v2/HyperCLOVAXVisionV2Model idefics2/Idefics2Model idefics3/Idefics3Model
        inkling2/Inkling2Model inkling2_text/Inkling2TextModel inkling_mm_model/InklingModel
        inkling_text/InklingTextModel internlm3/LlamaModel internvl/InternVLModel iquestcoder/LlamaModel
        jais2/Jais2Model jamba/JambaModel janus/JanusModel jetmoe/JetMoeModel kimi_k25/Kimi_K25Model
        kimi_linear/KimiLinearModel kolibri1/Kolibri1Model laguna/LagunaModel lfm2/Lfm2Model lfm2_vl/Lfm2VlModel
        lfm3/Lfm3Model lfm3_vl/Lfm3VlModel llama/LlamaModel llava/LlavaModel llava_next/LlavaNextModel
        llava_next_video/LlavaNextVideoModel llava_onevision/LlavaOnevisionModel longcat_flash/LongcatFlashModel
        m2m_100/M2M100Model marian/MarianModel mbart/MBartModel mellum/MellumModel mimo_v2_flash/MiMoV2FlashModel
        minicpm3/MiniCPM3Model minicpm_ocr/MiniCPMOcrModel minicpmv4_6/MiniCPMV4_6Model minicpmv4_7/MiniCPMV4_7Model
        minimax/MiniMaxModel minimax_m2/MiniMaxM2Model minimax_m3_vl/MiniMaxM3VLModel
        minimax_m3_vl_text/MiniMaxM3VLTextModel ministral3/Ministral3Model mistral/MistralModel mistral3/Mistral3Model
        mistral4/Mistral4Model mistral_large4/MistralLarge4Model mixtral/MixtralModel mllama/MllamaModel
        modernbert-decoder/ModernBertDecoderModel modernbert/ModernBertModel modernvbert/ModernVBertModel
        molmo2/Molmo2Model moonshine/MoonshineModel moshi/MoshiModel
        moss_transcribe_diarize/MossTranscribeDiarizeModel muse_glimmer/MuseGlimmerModel muse_spark/MuseSparkModel
        musicflamingo/MusicFlamingoModel mvp/MvpModel nanochat/NanoChatModel nemo_speechlm/Nemotron3_5TranscribeModel
        nemotron_h/NemotronHModel neomme/NeoMMEModel nllb-moe/NllbMoeModel olmo/OlmoModel olmo2/Olmo2Model
        olmo3/Olmo3Model olmo_hybrid/OlmoHybridModel olmoe/OlmoeModel openai_privacy_filter/OpenAIPrivacyFilterModel
        opt/OPTModel ovis2/Ovis2Model paddleocr_vl/PaddleOCRVLModel paligemma/PaliGemmaModel pegasus/PegasusModel
        pegasus_x/PegasusXModel persimmon/PersimmonModel phi/PhiModel phi3/Phi3Model
        phi4_multimodal/Phi4MultimodalModel phimoe/PhimoeModel pi0/PI0Model plbart/PLBartModel
        qianfan_ocr/QianfanOCRModel qwen2/Qwen2Model qwen2_5_omni_thinker/Qwen2_5OmniThinkerModel
        qwen2_5_vl/Qwen2_5_VLModel qwen2_audio/Qwen2AudioModel qwen2_moe/Qwen2MoeModel qwen2_vl/Qwen2VLModel
        qwen3/Qwen3Model qwen3_5/Qwen3_5Model qwen3_5_moe/Qwen3_5MoeModel qwen3_5_moe_text/Qwen3_5MoeTextModel
        qwen3_5_text/Qwen3_5TextModel qwen3_asr/Qwen3ASRModel qwen3_moe/Qwen3MoeModel qwen3_next/Qwen3NextModel
        qwen3_omni_moe_thinker/Qwen3OmniMoeThinkerModel qwen3_vl/Qwen3VLModel qwen3_vl_moe/Qwen3VLMoeModel
        recurrent_gemma/RecurrentGemmaModel seed_oss/SeedOssModel smollm3/SmolLM3Model smolvlm/SmolVLMModel
        solar_open/SolarOpenModel speech_to_text/Speech2TextModel stablelm/StableLmModel starcoder2/Starcoder2Model
        step3p7/Step3p7Model t5gemma/T5GemmaModel t5gemma2/T5Gemma2Model ultrabert/UltrabertModel
        ultravbert/UltraVBertModel unlimited_ocr/UnlimitedOcrModel vaultgemma/VaultGemmaModel
        vibevoice/VibeVoiceForConditionalGeneration vibevoice_asr/VibeVoiceAsrModel video_llama_3/VideoLlama3Model
        video_llava/VideoLlavaModel vipllava/VipLlavaModel voxtral/VoxtralModel voxtral_realtime/VoxtralRealtimeModel
        whisper/WhisperModel xglm/XGLMModel youtu/YoutuModel zamba/ZambaModel zamba2/Zamba2Model zaya/ZayaModel
    """,
    "mpnet": """
        mpnet/MPNetModel
    """,
    "mra": """
        mra/MraModel
    """,
    "nomic_bert": """
        nomic_bert/NomicBertModel
    """,
    "nystromformer": """
        nystromformer/NystromformerModel
    """,
    "perceiver": """
        perceiver/PerceiverModel
    """,
    "prophetnet": """
        prophetnet/ProphetNetModel
    """,
    "reformer": """
        reformer/ReformerModel
    """,
    "rembert": """
        rembert/RemBertModel
    """,
    "roberta": """
        camembert/CamembertModel jina_embeddings_v3/JinaEmbeddingsV3Model roberta/RobertaModel
        xlm-roberta-xl/XLMRobertaXLModel xlm-roberta/XLMRobertaModel xmod/XmodModel
    """,
    "roberta_prelayernorm": """
        roberta-prelayernorm/RobertaPreLayerNormModel
    """,
    "roc_bert": """
        roc_bert/RoCBertModel
    """,
    "roformer": """
        roformer/RoFormerModel
    """,
    "rwkv": """
        rwkv/RwkvModel
    """,
    "splinter": """
        splinter/SplinterModel
    """,
    "switch_transformers": """
        switch_transformers/SwitchTransformersModel
    """,
    "tapas": """
        tapas/TapasModel
    """,
    "transformer": """
        bloom/BloomModel codegen/CodeGenModel ctrl/CTRLModel falcon/FalconModel flaubert/FlaubertModel
        gpt-sw3/GPT2Model gpt2/GPT2Model gpt_bigcode/GPTBigCodeModel gpt_neo/GPTNeoModel gptj/GPTJModel
        longt5/LongT5Model mpt/MptModel mt5/MT5Model openai-gpt/OpenAIGPTModel squeezebert/SqueezeBertModel t5/T5Model
        udop/UdopModel umt5/UMT5Model xlm/XLMModel xlnet/XLNetModel
    """,
    "unispeech": """
        unispeech/UniSpeechModel
    """,
    "unispeech_sat": """
        unispeech-sat/UniSpeechSatModel
    """,
    "visual_bert": """
        visual_bert/VisualBertModel
    """,
    "wav2vec2": """
        wav2vec2/Wav2Vec2Model
    """,
    "wav2vec2_conformer": """
        wav2vec2-conformer/Wav2Vec2ConformerModel
    """,
    "yoso": """
        yoso/YosoModel
    """,
}

# (task, prefix of the body, its parts that the class leaves out, the tensor with a row for each label) -> classes,
# after their model types.
CLASSES: Mapping[tuple[str, str, str, str], str] = {
    ("QUESTION_ANS", "", "", ""): """
        mt5/MT5ForQuestionAnswering t5/T5ForQuestionAnswering umt5/UMT5ForQuestionAnswering
    """,
    ("QUESTION_ANS", "albert", "pooler", ""): """
        albert/AlbertForQuestionAnswering
    """,
    ("QUESTION_ANS", "bert", "pooler", ""): """
        bert/BertForQuestionAnswering big_bird/BigBirdForQuestionAnswering
        megatron-bert/MegatronBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "canine", "", ""): """
        canine/CanineForQuestionAnswering
    """,
    ("QUESTION_ANS", "convbert", "", ""): """
        convbert/ConvBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "data2vec_text", "pooler", ""): """
        data2vec-text/Data2VecTextForQuestionAnswering
    """,
    ("QUESTION_ANS", "deberta", "", ""): """
        deberta-v2/DebertaV2ForQuestionAnswering deberta/DebertaForQuestionAnswering
    """,
    ("QUESTION_ANS", "distilbert", "", ""): """
        distilbert/DistilBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "electra", "", ""): """
        electra/ElectraForQuestionAnswering
    """,
    ("QUESTION_ANS", "ernie", "pooler", ""): """
        ernie/ErnieForQuestionAnswering
    """,
    ("QUESTION_ANS", "fnet", "", ""): """
        fnet/FNetForQuestionAnswering
    """,
    ("QUESTION_ANS", "funnel", "", ""): """
        funnel/FunnelForQuestionAnswering
    """,
    ("QUESTION_ANS", "gpt_neox", "", ""): """
        gpt_neox/GPTNeoXForQuestionAnswering
    """,
    ("QUESTION_ANS", "ibert", "pooler", ""): """
        ibert/IBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "layoutlmv3", "", ""): """
        layoutlmv3/LayoutLMv3ForQuestionAnswering
    """,
    ("QUESTION_ANS", "led", "", ""): """
        led/LEDForQuestionAnswering
    """,
    ("QUESTION_ANS", "lilt", "pooler", ""): """
        lilt/LiltForQuestionAnswering
    """,
    ("QUESTION_ANS", "longformer", "pooler", ""): """
        longformer/LongformerForQuestionAnswering
    """,
    ("QUESTION_ANS", "luke", "pooler", ""): """
        luke/LukeForQuestionAnswering
    """,
    ("QUESTION_ANS", "lxmert", "", ""): """
        lxmert/LxmertForQuestionAnswering
    """,
    ("QUESTION_ANS", "markuplm", "pooler", ""): """
        markuplm/MarkupLMForQuestionAnswering
    """,
    ("QUESTION_ANS", "mobilebert", "pooler", ""): """
        mobilebert/MobileBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "model", "", ""): """
        bart/BartForQuestionAnswering bigbird_pegasus/BigBirdPegasusForQuestionAnswering
        mbart/MBartForQuestionAnswering minimax/MiniMaxForQuestionAnswering ministral3/Ministral3ForQuestionAnswering
        mistral/MistralForQuestionAnswering mixtral/MixtralForQuestionAnswering
        modernbert/ModernBertForQuestionAnswering mvp/MvpForQuestionAnswering opt/OPTForQuestionAnswering
        qwen2_moe/Qwen2MoeForQuestionAnswering ultrabert/UltrabertForQuestionAnswering
    """,
    ("QUESTION_ANS", "mpnet", "pooler", ""): """
        mpnet/MPNetForQuestionAnswering
    """,
    ("QUESTION_ANS", "mra", "", ""): """
        mra/MraForQuestionAnswering
    """,
    ("QUESTION_ANS", "nystromformer", "", ""): """
        nystromformer/NystromformerForQuestionAnswering
    """,
    ("QUESTION_ANS", "reformer", "", ""): """
        reformer/ReformerForQuestionAnswering
    """,
    ("QUESTION_ANS", "rembert", "pooler", ""): """
        rembert/RemBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "roberta", "pooler", ""): """
        camembert/CamembertForQuestionAnswering jina_embeddings_v3/JinaEmbeddingsV3ForQuestionAnswering
        roberta/RobertaForQuestionAnswering xlm-roberta-xl/XLMRobertaXLForQuestionAnswering
        xlm-roberta/XLMRobertaForQuestionAnswering xmod/XmodForQuestionAnswering
    """,
    ("QUESTION_ANS", "roberta_prelayernorm", "pooler", ""): """
        roberta-prelayernorm/RobertaPreLayerNormForQuestionAnswering
    """,
    ("QUESTION_ANS", "roc_bert", "pooler", ""): """
        roc_bert/RoCBertForQuestionAnswering
    """,
    ("QUESTION_ANS", "roformer", "", ""): """
        roformer/RoFormerForQuestionAnswering
    """,
    ("QUESTION_ANS", "transformer", "", ""): """
        arcee/ArceeForQuestionAnswering bloom/BloomForQuestionAnswering diffllama/DiffLlamaForQuestionAnswering
        exaone4/Exaone4ForQuestionAnswering falcon/FalconForQuestionAnswering
        flaubert/FlaubertForQuestionAnsweringSimple gpt2/GPT2ForQuestionAnswering gpt_neo/GPTNeoForQuestionAnswering
        gptj/GPTJForQuestionAnswering llama/LlamaForQuestionAnswering mpt/MptForQuestionAnswering
        qwen2/Qwen2ForQuestionAnswering qwen3/Qwen3ForQuestionAnswering qwen3_moe/Qwen3MoeForQuestionAnswering
        qwen3_next/Qwen3NextForQuestionAnswering seed_oss/SeedOssForQuestionAnswering
        smollm3/SmolLM3ForQuestionAnswering squeezebert/SqueezeBertForQuestionAnswering
        xlm/XLMForQuestionAnsweringSimple xlnet/XLNetForQuestionAnsweringSimple
    """,
    ("QUESTION_ANS", "yoso", "", ""): """
        yoso/YosoForQuestionAnswering
    """,
    ("SEQ_CLS", "albert", "", "classifier.weight"): """
        albert/AlbertForSequenceClassification
    """,
    ("SEQ_CLS", "bert", "", "classifier.out_proj.weight"): """
        big_bird/BigBirdForSequenceClassification
    """,
    ("SEQ_CLS", "bert", "", "classifier.weight"): """
        bert/BertForSequenceClassification megatron-bert/MegatronBertForSequenceClassification
    """,
    ("SEQ_CLS", "biogpt", "", "score.weight"): """
        biogpt/BioGptForSequenceClassification
    """,
    ("SEQ_CLS", "canine", "", "classifier.weight"): """
        canine/CanineForSequenceClassification
    """,
    ("SEQ_CLS", "convbert", "", "classifier.out_proj.weight"): """
        convbert/ConvBertForSequenceClassification
    """,
    ("SEQ_CLS", "data2vec_text", "pooler", "classifier.out_proj.weight"): """
        data2vec-text/Data2VecTextForSequenceClassification
    """,
    ("SEQ_CLS", "deberta", "", "classifier.weight"): """
        deberta-v2/DebertaV2ForSequenceClassification deberta/DebertaForSequenceClassification
    """,
    ("SEQ_CLS", "distilbert", "", "classifier.weight"): """
        distilbert/DistilBertForSequenceClassification
    """,
    ("SEQ_CLS", "electra", "", "classifier.out_proj.weight"): """
        electra/ElectraForSequenceClassification
    """,
    ("SEQ_CLS", "ernie", "", "classifier.weight"): """
        ernie/ErnieForSequenceClassification
    """,
    ("SEQ_CLS", "esmc", "", "classifier.out_proj.weight"): """
        esmc/EsmcForSequenceClassification
    """,
    ("SEQ_CLS", "fnet", "", "classifier.weight"): """
        fnet/FNetForSequenceClassification
    """,
    ("SEQ_CLS", "funnel", "decoder", "classifier.linear_out.weight"): """
        funnel/FunnelForSequenceClassification
    """,
    ("SEQ_CLS", "gpt_neox", "", "score.weight"): """
        gpt_neox/GPTNeoXForSequenceClassification
    """,
    ("SEQ_CLS", "ibert", "pooler", "classifier.out_proj.weight"): """
        ibert/IBertForSequenceClassification
    """,
    ("SEQ_CLS", "layoutlm", "", "classifier.weight"): """
        layoutlm/LayoutLMForSequenceClassification
    """,
    ("SEQ_CLS", "layoutlmv3", "", "classifier.out_proj.weight"): """
        layoutlmv3/LayoutLMv3ForSequenceClassification
    """,
    ("SEQ_CLS", "lilt", "pooler", "classifier.out_proj.weight"): """
        lilt/LiltForSequenceClassification
    """,
    ("SEQ_CLS", "longformer", "pooler", "classifier.out_proj.weight"): """
        longformer/LongformerForSequenceClassification
    """,
    ("SEQ_CLS", "luke", "", "classifier.weight"): """
        luke/LukeForSequenceClassification
    """,
    ("SEQ_CLS", "markuplm", "", "classifier.weight"): """
        markuplm/MarkupLMForSequenceClassification
    """,
    ("SEQ_CLS", "mobilebert", "", "classifier.weight"): """
        mobilebert/MobileBertForSequenceClassification
    """,
    ("SEQ_CLS", "model", "", "classification_head.out_proj.weight"): """
        bart/BartForSequenceClassification bigbird_pegasus/BigBirdPegasusForSequenceClassification
        mbart/MBartForSequenceClassification mvp/MvpForSequenceClassification plbart/PLBartForSequenceClassification
    """,
    ("SEQ_CLS", "model", "", "classifier.weight"): """
        eurobert/EuroBertForSequenceClassification modernbert-decoder/ModernBertDecoderForSequenceClassification
        modernbert/ModernBertForSequenceClassification modernvbert/ModernVBertForSequenceClassification
        ultrabert/UltrabertForSequenceClassification ultravbert/UltraVBertForSequenceClassification
    """,
    ("SEQ_CLS", "model", "", "score.out_proj.weight"): """
        t5gemma/T5GemmaForSequenceClassification t5gemma2/T5Gemma2ForSequenceClassification
    """,
    ("SEQ_CLS", "model", "", "score.weight"): """
        arcee/ArceeForSequenceClassification axk1/AXK1ForSequenceClassification axk2/AXK2ForSequenceClassification
        deepseek_v2/DeepseekV2ForSequenceClassification deepseek_v3/DeepseekV3ForSequenceClassification
        diffllama/DiffLlamaForSequenceClassification doge/DogeForSequenceClassification
        exaone4/Exaone4ForSequenceClassification gemma/GemmaForSequenceClassification
        gemma2/Gemma2ForSequenceClassification gemma3/Gemma3ForSequenceClassification
        gemma3_text/Gemma3TextForSequenceClassification glm/GlmForSequenceClassification
        glm4/Glm4ForSequenceClassification gpt_oss/GptOssForSequenceClassification
        helium/HeliumForSequenceClassification jamba/JambaForSequenceClassification
        jetmoe/JetMoeForSequenceClassification llama/LlamaForSequenceClassification
        minicpm3/MiniCPM3ForSequenceClassification minimax/MiniMaxForSequenceClassification
        ministral3/Ministral3ForSequenceClassification mistral/MistralForSequenceClassification
        mistral4/Mistral4ForSequenceClassification mixtral/MixtralForSequenceClassification
        olmo/OlmoForSequenceClassification olmo2/Olmo2ForSequenceClassification olmo3/Olmo3ForSequenceClassification
        opt/OPTForSequenceClassification persimmon/PersimmonForSequenceClassification phi/PhiForSequenceClassification
        phi3/Phi3ForSequenceClassification phimoe/PhimoeForSequenceClassification qwen2/Qwen2ForSequenceClassification
        qwen2_moe/Qwen2MoeForSequenceClassification qwen3/Qwen3ForSequenceClassification
        qwen3_5/Qwen3_5ForSequenceClassification qwen3_5_text/Qwen3_5TextForSequenceClassification
        qwen3_moe/Qwen3MoeForSequenceClassification qwen3_next/Qwen3NextForSequenceClassification
        seed_oss/SeedOssForSequenceClassification smollm3/SmolLM3ForSequenceClassification
        stablelm/StableLmForSequenceClassification starcoder2/Starcoder2ForSequenceClassification
        zamba/ZambaForSequenceClassification zamba2/Zamba2ForSequenceClassification
    """,
    ("SEQ_CLS", "mpnet", "pooler", "classifier.out_proj.weight"): """
        mpnet/MPNetForSequenceClassification
    """,
    ("SEQ_CLS", "mra", "", "classifier.out_proj.weight"): """
        mra/MraForSequenceClassification
    """,
    ("SEQ_CLS", "nystromformer", "", "classifier.out_proj.weight"): """
        nystromformer/NystromformerForSequenceClassification
    """,
    ("SEQ_CLS", "reformer", "", "classifier.out_proj.weight"): """
        reformer/ReformerForSequenceClassification
    """,
    ("SEQ_CLS", "rembert", "", "classifier.weight"): """
        rembert/RemBertForSequenceClassification
    """,
    ("SEQ_CLS", "roberta", "pooler", "classifier.out_proj.weight"): """
        camembert/CamembertForSequenceClassification jina_embeddings_v3/JinaEmbeddingsV3ForSequenceClassification
        roberta/RobertaForSequenceClassification xlm-roberta-xl/XLMRobertaXLForSequenceClassification
        xlm-roberta/XLMRobertaForSequenceClassification xmod/XmodForSequenceClassification
    """,
    ("SEQ_CLS", "roberta_prelayernorm", "pooler", "classifier.out_proj.weight"): """
        roberta-prelayernorm/RobertaPreLayerNormForSequenceClassification
    """,
    ("SEQ_CLS", "roc_bert", "", "classifier.weight"): """
        roc_bert/RoCBertForSequenceClassification
    """,
    ("SEQ_CLS", "roformer", "", "classifier.out_proj.weight"): """
        roformer/RoFormerForSequenceClassification
    """,
    ("SEQ_CLS", "tapas", "", "classifier.weight"): """
        tapas/TapasForSequenceClassification
    """,
    ("SEQ_CLS", "transformer", "", "classification_head.out_proj.weight"): """
        mt5/MT5ForSequenceClassification t5/T5ForSequenceClassification umt5/UMT5ForSequenceClassification
    """,
    ("SEQ_CLS", "transformer", "", "classifier.weight"): """
        ctrl/CTRLForSequenceClassification squeezebert/SqueezeBertForSequenceClassification
    """,
    ("SEQ_CLS", "transformer", "", "logits_proj.weight"): """
        xlnet/XLNetForSequenceClassification
    """,
    ("SEQ_CLS", "transformer", "", "score.weight"): """
        bloom/BloomForSequenceClassification falcon/FalconForSequenceClassification
        gpt-sw3/GPT2ForSequenceClassification gpt2/GPT2ForSequenceClassification
        gpt_bigcode/GPTBigCodeForSequenceClassification gpt_neo/GPTNeoForSequenceClassification
        gptj/GPTJForSequenceClassification mpt/MptForSequenceClassification
        openai-gpt/OpenAIGPTForSequenceClassification
    """,
    ("SEQ_CLS", "transformer", "", "sequence_summary.summary.weight"): """
        flaubert/FlaubertForSequenceClassification xlm/XLMForSequenceClassification
    """,
    ("SEQ_CLS", "yoso", "", "classifier.out_proj.weight"): """
        yoso/YosoForSequenceClassification
    """,
    ("TOKEN_CLS", "albert", "pooler", "classifier.weight"): """
        albert/AlbertForTokenClassification
    """,
    ("TOKEN_CLS", "bert", "", "classifier.weight"): """
        big_bird/BigBirdForTokenClassification
    """,
    ("TOKEN_CLS", "bert", "pooler", "classifier.weight"): """
        bert/BertForTokenClassification megatron-bert/MegatronBertForTokenClassification
    """,
    ("TOKEN_CLS", "biogpt", "", "classifier.weight"): """
        biogpt/BioGptForTokenClassification
    """,
    ("TOKEN_CLS", "bros", "", "classifier.weight"): """
        bros/BrosForTokenClassification
    """,
    ("TOKEN_CLS", "canine", "", "classifier.weight"): """
        canine/CanineForTokenClassification
    """,
    ("TOKEN_CLS", "convbert", "", "classifier.weight"): """
        convbert/ConvBertForTokenClassification
    """,
    ("TOKEN_CLS", "data2vec_text", "pooler", "classifier.weight"): """
        data2vec-text/Data2VecTextForTokenClassification
    """,
    ("TOKEN_CLS", "deberta", "", "classifier.weight"): """
        deberta-v2/DebertaV2ForTokenClassification deberta/DebertaForTokenClassification
    """,
    ("TOKEN_CLS", "distilbert", "", "classifier.weight"): """
        distilbert/DistilBertForTokenClassification
    """,
    ("TOKEN_CLS", "electra", "", "classifier.weight"): """
        electra/ElectraForTokenClassification
    """,
    ("TOKEN_CLS", "ernie", "pooler", "classifier.weight"): """
        ernie/ErnieForTokenClassification
    """,
    ("TOKEN_CLS", "esmc", "", "score.weight"): """
        esmc/EsmcForTokenClassification
    """,
    ("TOKEN_CLS", "fnet", "", "classifier.weight"): """
        fnet/FNetForTokenClassification
    """,
    ("TOKEN_CLS", "funnel", "", "classifier.weight"): """
        funnel/FunnelForTokenClassification
    """,
    ("TOKEN_CLS", "gpt_neox", "", "classifier.weight"): """
        gpt_neox/GPTNeoXForTokenClassification
    """,
    ("TOKEN_CLS", "gte", "", "classifier.weight"): """
        gte/GteForTokenClassification
    """,
    ("TOKEN_CLS", "ibert", "pooler", "classifier.weight"): """
        ibert/IBertForTokenClassification
    """,
    ("TOKEN_CLS", "layoutlm", "", "classifier.weight"): """
        layoutlm/LayoutLMForTokenClassification
    """,
    ("TOKEN_CLS", "layoutlmv3", "", "classifier.weight"): """
        layoutlmv3/LayoutLMv3ForTokenClassification
    """,
    ("TOKEN_CLS", "lilt", "pooler", "classifier.weight"): """
        lilt/LiltForTokenClassification
    """,
    ("TOKEN_CLS", "longformer", "pooler", "classifier.weight"): """
        longformer/LongformerForTokenClassification
    """,
    ("TOKEN_CLS", "luke", "pooler", "classifier.weight"): """
        luke/LukeForTokenClassification
    """,
    ("TOKEN_CLS", "markuplm", "pooler", "classifier.weight"): """
        markuplm/MarkupLMForTokenClassification
    """,
    ("TOKEN_CLS", "mobilebert", "pooler", "classifier.weight"): """
        mobilebert/MobileBertForTokenClassification
    """,
    ("TOKEN_CLS", "model", "", "classifier.weight"): """
        eurobert/EuroBertForTokenClassification modernbert/ModernBertForTokenClassification
        modernvbert/ModernVBertForTokenClassification ultrabert/UltrabertForTokenClassification
        ultravbert/UltraVBertForTokenClassification
    """,
    ("TOKEN_CLS", "model", "", "score.out_proj.weight"): """
        t5gemma/T5GemmaForTokenClassification t5gemma2/T5Gemma2ForTokenClassification
    """,
    ("TOKEN_CLS", "model", "", "score.weight"): """
        apertus/ApertusForTokenClassification arcee/ArceeForTokenClassification axk1/AXK1ForTokenClassification
        axk2/AXK2ForTokenClassification deepseek_v3/DeepseekV3ForTokenClassification
        diffllama/DiffLlamaForTokenClassification exaone4/Exaone4ForTokenClassification
        gemma/GemmaForTokenClassification gemma2/Gemma2ForTokenClassification glm/GlmForTokenClassification
        glm4/Glm4ForTokenClassification gpt_oss/GptOssForTokenClassification helium/HeliumForTokenClassification
        llama/LlamaForTokenClassification minimax/MiniMaxForTokenClassification
        ministral3/Ministral3ForTokenClassification mistral/MistralForTokenClassification
        mistral4/Mistral4ForTokenClassification mixtral/MixtralForTokenClassification
        openai_privacy_filter/OpenAIPrivacyFilterForTokenClassification persimmon/PersimmonForTokenClassification
        phi/PhiForTokenClassification phi3/Phi3ForTokenClassification qwen2/Qwen2ForTokenClassification
        qwen2_moe/Qwen2MoeForTokenClassification qwen3/Qwen3ForTokenClassification
        qwen3_5/Qwen3_5ForTokenClassification qwen3_asr/Qwen3ASRForTokenClassification
        qwen3_moe/Qwen3MoeForTokenClassification qwen3_next/Qwen3NextForTokenClassification
        seed_oss/SeedOssForTokenClassification smollm3/SmolLM3ForTokenClassification
        stablelm/StableLmForTokenClassification starcoder2/Starcoder2ForTokenClassification
    """,
    ("TOKEN_CLS", "mpnet", "pooler", "classifier.weight"): """
        mpnet/MPNetForTokenClassification
    """,
    ("TOKEN_CLS", "mra", "", "classifier.weight"): """
        mra/MraForTokenClassification
    """,
    ("TOKEN_CLS", "nomic_bert", "", "classifier.weight"): """
        nomic_bert/NomicBertForTokenClassification
    """,
    ("TOKEN_CLS", "nystromformer", "", "classifier.weight"): """
        nystromformer/NystromformerForTokenClassification
    """,
    ("TOKEN_CLS", "rembert", "pooler", "classifier.weight"): """
        rembert/RemBertForTokenClassification
    """,
    ("TOKEN_CLS", "roberta", "pooler", "classifier.weight"): """
        camembert/CamembertForTokenClassification jina_embeddings_v3/JinaEmbeddingsV3ForTokenClassification
        roberta/RobertaForTokenClassification xlm-roberta-xl/XLMRobertaXLForTokenClassification
        xlm-roberta/XLMRobertaForTokenClassification xmod/XmodForTokenClassification
    """,
    ("TOKEN_CLS", "roberta_prelayernorm", "pooler", "classifier.weight"): """
        roberta-prelayernorm/RobertaPreLayerNormForTokenClassification
    """,
    ("TOKEN_CLS", "roc_bert", "pooler", "classifier.weight"): """
        roc_bert/RoCBertForTokenClassification
    """,
    ("TOKEN_CLS", "roformer", "", "classifier.weight"): """
        roformer/RoFormerForTokenClassification
    """,
    ("TOKEN_CLS", "transformer", "", "classifier.weight"): """
        bloom/BloomForTokenClassification falcon/FalconForTokenClassification flaubert/FlaubertForTokenClassification
        gpt-sw3/GPT2ForTokenClassification gpt2/GPT2ForTokenClassification
        gpt_bigcode/GPTBigCodeForTokenClassification gpt_neo/GPTNeoForTokenClassification
        mpt/MptForTokenClassification squeezebert/SqueezeBertForTokenClassification xlm/XLMForTokenClassification
        xlnet/XLNetForTokenClassification
    """,
    ("TOKEN_CLS", "transformer", "decoder", "classifier.weight"): """
        mt5/MT5ForTokenClassification t5/T5ForTokenClassification umt5/UMT5ForTokenClassification
    """,
    ("TOKEN_CLS", "yoso", "", "classifier.weight"): """
        yoso/YosoForTokenClassification
    """,
}
