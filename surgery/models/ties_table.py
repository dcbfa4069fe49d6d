"""What transformers' classes tie, and which tie nothing. A test compares it with the classes.

Generated from transformers 5.23.0, each class made from its default config on the meta device, or, where that cannot
be made, read from its `_tied_weights_keys`. Left out are classes whose ties depend on more than the class: on the
number of layers, on a nested config's own flag, on options; and those that tie no input embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

# Lines of a source and what is tied to it, in transformers' order -> the classes that do.
TIED: Mapping[str, str] = {
    "model.embed_tokens.weight = lm_head.weight": (
        """
        AXK1ForCausalLM AXK2ForCausalLM AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM
        BambaForCausalLM BeamForCausalLM BitNetForCausalLM ChameleonForConditionalGeneration Cohere2ForCausalLM
        Cohere2MoeForCausalLM CohereCompassForCausalLM CohereForCausalLM CwmForCausalLM DeepseekV2ForCausalLM
        DeepseekV32ForCausalLM DeepseekV3ForCausalLM DeepseekV4ForCausalLM DiffLlamaForCausalLM DogeForCausalLM
        Dots1ForCausalLM Dots3NoteForCausalLM Emu3ForCausalLM Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM
        EuroBertForMaskedLM Exaone4ForCausalLM ExaoneMoeForCausalLM FalconH1ForCausalLM FlexOlmoForCausalLM
        FlintForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3nForCausalLM Gemma4AssistantForCausalLM
        Gemma4ForCausalLM Gemma4UnifiedAssistantForCausalLM Gemma4UnifiedForCausalLM GemmaForCausalLM
        Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GlmForCausalLM GlmMoeDsaForCausalLM
        GptOssForCausalLM GraniteForCausalLM GraniteMoeForCausalLM GraniteMoeHybridForCausalLM
        GraniteMoeSWAForCausalLM GraniteMoeSharedForCausalLM GraniteSWAForCausalLM HYV3ForCausalLM
        HYV4ForCausalLM HeliumForCausalLM HrmTextForCausalLM HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM
        HyperCLOVAXForCausalLM Jais2ForCausalLM JambaForCausalLM JetMoeForCausalLM Kolibri1ForCausalLM
        LagunaForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM Lfm3ForCausalLM Llama4ForCausalLM LlamaForCausalLM
        LongcatFlashForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM MiniCPM3ForCausalLM MiniMaxForCausalLM
        MiniMaxM2ForCausalLM MiniMaxM3VLForCausalLM Ministral3ForCausalLM MinistralForCausalLM
        Mistral4ForCausalLM MistralForCausalLM MixtralForCausalLM NanoChatForCausalLM NemotronForCausalLM
        Olmo2ForCausalLM Olmo3ForCausalLM OlmoForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM
        PersimmonForCausalLM Phi3ForCausalLM Phi4MultimodalForCausalLM PhiForCausalLM PhimoeForCausalLM
        Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM
        Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM
        Qwen4ExpForCausalLM RecurrentGemmaForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM SolarOpenForCausalLM
        StableLmForCausalLM Starcoder2ForCausalLM VaultGemmaForCausalLM XGLMForCausalLM YoutuForCausalLM
        Zamba2ForCausalLM ZambaForCausalLM ZayaForCausalLM
        """
    ),
    "model.language_model.embed_tokens.weight = lm_head.weight": (
        """
        AriaForConditionalGeneration AyaVisionForConditionalGeneration Cohere2VisionForConditionalGeneration
        CohereCompassForConditionalGeneration Cosmos3OmniForConditionalGeneration
        DeepseekOcr2ForConditionalGeneration DeepseekVLForConditionalGeneration
        DeepseekVLHybridForConditionalGeneration Dots3NoteForConditionalGeneration
        Ernie4_5_VLMoeForConditionalGeneration Ernie4_5_VL_MoeForConditionalGeneration
        Exaone4_5_ForConditionalGeneration FastVlmForConditionalGeneration FunAsrNanoForConditionalGeneration
        FuyuForCausalLM Gemma3ForConditionalGeneration Gemma3nForConditionalGeneration
        Gemma4ForConditionalGeneration Gemma4UnifiedForConditionalGeneration Glm46VForConditionalGeneration
        Glm4vForConditionalGeneration Glm4vMoeForConditionalGeneration Glm5NextForConditionalGeneration
        GlmAsrForConditionalGeneration GlmOcrForConditionalGeneration GotOcr2ForConditionalGeneration
        Granite4VisionForConditionalGeneration GraniteSpeechForConditionalGeneration
        GraniteSpeechPlusForConditionalGeneration HunYuanVLForConditionalGeneration
        HyperCLOVAXVisionV2ForConditionalGeneration InternVLForConditionalGeneration
        JanusForConditionalGeneration Kimi_K25ForConditionalGeneration Lfm2VlForConditionalGeneration
        Lfm3VlForConditionalGeneration LightOnOcrForConditionalGeneration LlavaForConditionalGeneration
        LlavaNextForConditionalGeneration LlavaNextVideoForConditionalGeneration
        LlavaOnevisionForConditionalGeneration MiniCPMOcrForConditionalGeneration
        MiniCPMV4_6ForConditionalGeneration MiniCPMV4_7ForConditionalGeneration
        MiniMaxM3SparseForConditionalGeneration Mistral3ForConditionalGeneration
        MistralLarge4ForConditionalGeneration MossTranscribeDiarizeForConditionalGeneration
        MuseGlimmerForConditionalGeneration Ovis2ForConditionalGeneration PaddleOCRVLForConditionalGeneration
        PaliGemmaForConditionalGeneration PerceptionLMForConditionalGeneration
        QianfanOCRForConditionalGeneration Qwen2VLForConditionalGeneration
        Qwen2_5OmniThinkerForConditionalGeneration Qwen2_5_VLForConditionalGeneration
        Qwen3ASRForConditionalGeneration Qwen3OmniMoeThinkerForConditionalGeneration
        Qwen3VLForConditionalGeneration Qwen3VLMoeForConditionalGeneration Qwen3_5ForConditionalGeneration
        Qwen3_5MoeForConditionalGeneration Qwen4ExpForConditionalGeneration Step3p7ForConditionalGeneration
        UnlimitedOcrForConditionalGeneration VibeVoiceForConditionalGeneration
        VideoLlama3ForConditionalGeneration VideoLlavaForConditionalGeneration VipLlavaForConditionalGeneration
        VoxtralRealtimeForConditionalGeneration
        """
    ),
    "shared.weight = encoder.embed_tokens.weight decoder.embed_tokens.weight": (
        """
        BigBirdPegasusModel BlenderbotModel BlenderbotSmallModel LEDModel LongT5Model MT5ForQuestionAnswering
        MT5Model MvpModel NllbMoeModel PLBartModel PegasusXModel Pop2PianoForConditionalGeneration
        SwitchTransformersModel T5ForQuestionAnswering T5Model UMT5ForQuestionAnswering UMT5Model
        """
    ),
    "model.decoder.embed_tokens.weight = lm_head.weight": (
        """
        BartForCausalLM BlenderbotForCausalLM BlenderbotSmallForCausalLM DiffusionGemmaForBlockDiffusion
        MBartForCausalLM MarianForCausalLM MvpForCausalLM OPTForCausalLM PLBartForCausalLM PegasusForCausalLM
        SeamlessM4TTextToUnitForConditionalGeneration Speech2TextForConditionalGeneration
        """
    ),
    ("roberta.embeddings.word_embeddings.weight = lm_head.decoder.weight\nlm_head.bias = lm_head.decoder.bias"): (
        """
        CamembertForCausalLM CamembertForMaskedLM JinaEmbeddingsV3ForMaskedLM RobertaForCausalLM
        RobertaForMaskedLM XLMRobertaForCausalLM XLMRobertaForMaskedLM XLMRobertaXLForCausalLM
        XLMRobertaXLForMaskedLM XmodForCausalLM XmodForMaskedLM
        """
    ),
    (
        "bert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        BertForMaskedLM BertForPreTraining BertLMHeadModel BigBirdForCausalLM BigBirdForMaskedLM
        BigBirdForPreTraining BlipTextLMHeadModel MegatronBertForCausalLM MegatronBertForMaskedLM
        MegatronBertForPreTraining
        """
    ),
    "transformer.wte.weight = lm_head.weight": (
        """
        CodeGenForCausalLM DbrxForCausalLM GPT2DoubleHeadsModel GPT2LMHeadModel GPTBigCodeForCausalLM
        GPTJForCausalLM GPTNeoForCausalLM ImageGPTForCausalImageModeling MptForCausalLM
        """
    ),
    "model.shared.weight = lm_head.weight model.encoder.embed_tokens.weight model.decoder.embed_tokens.weight": (
        """
        BigBirdPegasusForConditionalGeneration BlenderbotForConditionalGeneration
        BlenderbotSmallForConditionalGeneration MvpForConditionalGeneration NllbMoeForConditionalGeneration
        PLBartForConditionalGeneration PegasusXForConditionalGeneration
        """
    ),
    "model.decoder.embed_tokens.weight = proj_out.weight": (
        """
        CanaryForConditionalGeneration CohereAsrForConditionalGeneration MoonshineForConditionalGeneration
        MoonshineStreamingForConditionalGeneration WhisperForCausalLM WhisperForConditionalGeneration
        """
    ),
    "model.text_model.embed_tokens.weight = lm_head.weight": (
        """
        Emu3ForConditionalGeneration GraniteDoclingForConditionalGeneration Idefics2ForConditionalGeneration
        Idefics3ForConditionalGeneration SmolVLMForConditionalGeneration UltraVBertForMaskedLM
        """
    ),
    "model.shared.weight = lm_head.weight model.decoder.embed_tokens.weight model.encoder.embed_tokens.weight": (
        """
        BartForConditionalGeneration M2M100ForConditionalGeneration MBartForConditionalGeneration MarianMTModel
        PegasusForConditionalGeneration
        """
    ),
    "model.shared.weight = model.encoder.embed_tokens.weight model.decoder.embed_tokens.weight": (
        """
        BigBirdPegasusForQuestionAnswering BigBirdPegasusForSequenceClassification MvpForQuestionAnswering
        MvpForSequenceClassification PLBartForSequenceClassification
        """
    ),
    "shared.weight = decoder.embed_tokens.weight encoder.embed_tokens.weight": (
        """
        BartModel M2M100Model MBartModel MarianModel PegasusModel
        """
    ),
    "shared.weight = encoder.embed_tokens.weight": (
        """
        LongT5EncoderModel MT5EncoderModel SwitchTransformersEncoderModel T5EncoderModel UMT5EncoderModel
        """
    ),
    "shared.weight = encoder.embed_tokens.weight decoder.embed_tokens.weight lm_head.weight": (
        """
        LongT5ForConditionalGeneration MT5ForConditionalGeneration SwitchTransformersForConditionalGeneration
        T5ForConditionalGeneration UMT5ForConditionalGeneration
        """
    ),
    "model.shared.weight = model.decoder.embed_tokens.weight model.encoder.embed_tokens.weight": (
        """
        BartForQuestionAnswering BartForSequenceClassification MBartForQuestionAnswering
        MBartForSequenceClassification
        """
    ),
    "backbone.embeddings.weight = lm_head.weight": (
        """
        FalconMambaForCausalLM Mamba2ForCausalLM MambaForCausalLM
        """
    ),
    (
        "ernie.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        ErnieForCausalLM ErnieForMaskedLM ErnieForPreTraining
        """
    ),
    (
        "roc_bert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        RoCBertForCausalLM RoCBertForMaskedLM RoCBertForPreTraining
        """
    ),
    "transformer.shared.weight = transformer.encoder.embed_tokens.weight": (
        """
        MT5ForTokenClassification T5ForTokenClassification UMT5ForTokenClassification
        """
    ),
    "transformer.shared.weight = transformer.encoder.embed_tokens.weight transformer.decoder.embed_tokens.weight": (
        """
        MT5ForSequenceClassification T5ForSequenceClassification UMT5ForSequenceClassification
        """
    ),
    (
        "albert.embeddings.word_embeddings.weight = predictions.decoder.weight\n"
        "predictions.bias = predictions.decoder.bias"
    ): (
        """
        AlbertForMaskedLM AlbertForPreTraining
        """
    ),
    ("data2vec_text.embeddings.word_embeddings.weight = lm_head.decoder.weight\nlm_head.bias = lm_head.decoder.bias"): (
        """
        Data2VecTextForCausalLM Data2VecTextForMaskedLM
        """
    ),
    (
        "deberta.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        DebertaForMaskedLM DebertaV2ForMaskedLM
        """
    ),
    "electra.embeddings.word_embeddings.weight = generator_lm_head.weight": (
        """
        ElectraForCausalLM ElectraForMaskedLM
        """
    ),
    (
        "fnet.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        FNetForMaskedLM FNetForPreTraining
        """
    ),
    (
        "mobilebert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        MobileBertForMaskedLM MobileBertForPreTraining
        """
    ),
    "model.embeddings.tok_embeddings.weight = decoder.weight": (
        """
        ModernBertDecoderForCausalLM ModernBertForMaskedLM
        """
    ),
    (
        "model.encoder.text_model.embed_tokens.weight = model.decoder.embed_tokens.weight\n"
        "model.encoder.text_model.embed_tokens.eoi_embedding = model.decoder.embed_tokens.eoi_embedding"
    ): (
        """
        T5Gemma2ForSequenceClassification T5Gemma2ForTokenClassification
        """
    ),
    (
        "roberta_prelayernorm.embeddings.word_embeddings.weight = lm_head.decoder.weight\n"
        "lm_head.bias = lm_head.decoder.bias"
    ): (
        """
        RobertaPreLayerNormForCausalLM RobertaPreLayerNormForMaskedLM
        """
    ),
    (
        "roformer.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        RoFormerForCausalLM RoFormerForMaskedLM
        """
    ),
    "shared.weight = lm_head.weight text_decoder.embed_tokens.weight": (
        """
        SeamlessM4TForSpeechToText SeamlessM4Tv2ForSpeechToText
        """
    ),
    "shared.weight = lm_head.weight text_encoder.embed_tokens.weight text_decoder.embed_tokens.weight": (
        """
        SeamlessM4TForTextToText SeamlessM4Tv2ForTextToText
        """
    ),
    "shared_image_embedding.positional_embedding = prompt_encoder.shared_embedding.positional_embedding": (
        """
        SamHQModel SamModel
        """
    ),
    "transformer.embeddings.weight = pred_layer.proj.weight": (
        """
        FlaubertWithLMHeadModel XLMWithLMHeadModel
        """
    ),
    "transformer.word_embeddings.weight = lm_head.weight": (
        """
        BloomForCausalLM FalconForCausalLM
        """
    ),
    (
        "visual_bert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        VisualBertForPreTraining VisualBertForRegionToPhraseAlignment
        """
    ),
    ("bert.embeddings.word_embeddings.weight = lm_head.decoder.weight\nlm_head.bias = lm_head.decoder.bias"): (
        """
        BertGenerationDecoder
        """
    ),
    "biogpt.embed_tokens.weight = output_projection.weight": (
        """
        BioGptForCausalLM
        """
    ),
    "bridgetower.text_model.embeddings.word_embeddings.weight = mlm_score.decoder.weight": (
        """
        BridgeTowerForMaskedLM
        """
    ),
    "convbert.embeddings.word_embeddings.weight = generator_lm_head.weight": (
        """
        ConvBertForMaskedLM
        """
    ),
    "decoder.embed_tokens.weight = encoder.embed_tokens.weight decoder.output_projection.weight": (
        """
        FSMTModel
        """
    ),
    "distilbert.embeddings.word_embeddings.weight = vocab_projector.weight": (
        """
        DistilBertForMaskedLM
        """
    ),
    "embed_tokens.weight = lm_head.weight": (
        """
        Pix2StructTextModel
        """
    ),
    (
        "encoder.text_model.embed_tokens.weight = decoder.embed_tokens.weight\n"
        "encoder.text_model.embed_tokens.eoi_embedding = decoder.embed_tokens.eoi_embedding"
    ): (
        """
        T5Gemma2Model
        """
    ),
    "esm.embeddings.word_embeddings.weight = lm_head.decoder.weight": (
        """
        EsmForMaskedLM
        """
    ),
    "funnel.embeddings.word_embeddings.weight = lm_head.weight": (
        """
        FunnelForMaskedLM
        """
    ),
    "git.embeddings.word_embeddings.weight = output.weight": (
        """
        GitForCausalLM
        """
    ),
    "gpt_neox.embed_in.weight = lm_head.weight": (
        """
        GPTNeoXForCausalLM
        """
    ),
    "gpt_neox_japanese.embed_in.weight = embed_out.weight": (
        """
        GPTNeoXJapaneseForCausalLM
        """
    ),
    "gte.embeddings.word_embeddings.weight = lm_head.decoder.weight": (
        """
        GteForMaskedLM
        """
    ),
    ("ibert.embeddings.word_embeddings.weight = lm_head.decoder.weight\nlm_head.bias = lm_head.decoder.bias"): (
        """
        IBertForMaskedLM
        """
    ),
    (
        "layoutlm.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        LayoutLMForMaskedLM
        """
    ),
    "led.shared.weight = led.encoder.embed_tokens.weight led.decoder.embed_tokens.weight": (
        """
        LEDForQuestionAnswering
        """
    ),
    "led.shared.weight = lm_head.weight led.encoder.embed_tokens.weight led.decoder.embed_tokens.weight": (
        """
        LEDForConditionalGeneration
        """
    ),
    "lm_head.weight = model.local_encoder.embed_tokens.weight": (
        """
        BltForCausalLM
        """
    ),
    "lm_head.weight = transformer.tokens_embed.weight": (
        """
        OpenAIGPTDoubleHeadsModel
        """
    ),
    ("longformer.embeddings.word_embeddings.weight = lm_head.decoder.weight\nlm_head.bias = lm_head.decoder.bias"): (
        """
        LongformerForMaskedLM
        """
    ),
    (
        "luke.entity_embeddings.entity_embeddings.weight = entity_predictions.decoder.weight\n"
        "lm_head.decoder.bias = lm_head.bias"
    ): (
        """
        LukeForMaskedLM
        """
    ),
    "lxmert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight": (
        """
        LxmertForPreTraining
        """
    ),
    "model.decoder.embed_tokens.weight = lm_head.out_proj.weight": (
        """
        T5GemmaForConditionalGeneration
        """
    ),
    "model.decoder.embed_tokens.weight = model.encoder.embed_tokens.weight model.decoder.output_projection.weight": (
        """
        FSMTForConditionalGeneration
        """
    ),
    "model.decoder.embed_tokens.weight = output_projection.weight": (
        """
        TrOCRForCausalLM
        """
    ),
    "model.embed_tokens.embed_tokens.weight = lm_head.weight": (
        """
        KyutaiSpeechToTextForConditionalGeneration
        """
    ),
    "model.embed_tokens.weight = head.decoder.weight": (
        """
        UltrabertForMaskedLM
        """
    ),
    (
        "model.embed_tokens.word_embeddings.weight = lm_head.weight\n"
        "model.embed_tokens.embedding_projection.weight = unembedding_projection.weight"
    ): (
        """
        NeoMMEForMaskedLM
        """
    ),
    (
        "model.encoder.text_model.embed_tokens.weight = lm_head.out_proj.weight "
        "model.decoder.embed_tokens.weight\n"
        "model.encoder.text_model.embed_tokens.eoi_embedding = model.decoder.embed_tokens.eoi_embedding"
    ): (
        """
        T5Gemma2ForConditionalGeneration
        """
    ),
    "model.model.language_model.embed_tokens.weight = model.lm_head.weight": (
        """
        ShieldGemma2ForImageClassification
        """
    ),
    "model.text_model.embeddings.tok_embeddings.weight = lm_head.weight": (
        """
        ModernVBertForMaskedLM
        """
    ),
    ("mpnet.embeddings.word_embeddings.weight = lm_head.decoder.weight\nlm_head.bias = lm_head.decoder.bias"): (
        """
        MPNetForMaskedLM
        """
    ),
    (
        "mra.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        MraForMaskedLM
        """
    ),
    (
        "nomic_bert.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        NomicBertForMaskedLM
        """
    ),
    (
        "nystromformer.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        NystromformerForMaskedLM
        """
    ),
    "prophetnet.word_embeddings.weight = lm_head.weight prophetnet.decoder.word_embeddings.weight": (
        """
        ProphetNetForCausalLM
        """
    ),
    (
        "prophetnet.word_embeddings.weight = lm_head.weight prophetnet.encoder.word_embeddings.weight "
        "prophetnet.decoder.word_embeddings.weight"
    ): (
        """
        ProphetNetForConditionalGeneration
        """
    ),
    "rwkv.embeddings.weight = head.weight": (
        """
        RwkvForCausalLM
        """
    ),
    (
        "shared.weight = encoder.embed_tokens.weight decoder.embed_tokens.weight\n"
        "patch_embed.proj.weight = encoder.embed_patches.proj.weight\n"
        "patch_embed.proj.bias = encoder.embed_patches.proj.bias"
    ): (
        """
        UdopModel
        """
    ),
    "speecht5.decoder.prenet.embed_tokens.weight = text_decoder_postnet.lm_head.weight": (
        """
        SpeechT5ForSpeechToText
        """
    ),
    (
        "tapas.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        TapasForMaskedLM
        """
    ),
    (
        "text_decoder.bert.embeddings.word_embeddings.weight = "
        "text_decoder.cls.predictions.decoder.weight\n"
        "text_decoder.cls.predictions.bias = text_decoder.cls.predictions.decoder.bias"
    ): (
        """
        BlipForConditionalGeneration
        """
    ),
    (
        "transformer.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        SqueezeBertForMaskedLM
        """
    ),
    "transformer.tokens_embed.weight = lm_head.weight": (
        """
        OpenAIGPTLMHeadModel
        """
    ),
    "transformer.w.weight = lm_head.weight": (
        """
        CTRLLMHeadModel
        """
    ),
    "transformer.word_embedding.weight = lm_loss.weight": (
        """
        XLNetLMHeadModel
        """
    ),
    "vilt.embeddings.text_embeddings.word_embeddings.weight = mlm_score.decoder.weight": (
        """
        ViltForMaskedLM
        """
    ),
    "word_embeddings.weight = encoder.word_embeddings.weight decoder.word_embeddings.weight": (
        """
        ProphetNetModel
        """
    ),
    (
        "yoso.embeddings.word_embeddings.weight = cls.predictions.decoder.weight\n"
        "cls.predictions.bias = cls.predictions.decoder.bias"
    ): (
        """
        YosoForMaskedLM
        """
    ),
}

# Classes with one tied tensor in which `tie_word_embeddings` changes more than that: they read the flag themselves, or
# tie blocks by it, too, as Zamba does.
FLAG_MEANS_MORE = frozenset(
    """
    LongT5EncoderModel MT5EncoderModel MT5ForTokenClassification MarianForCausalLM SwitchTransformersEncoderModel
    T5EncoderModel T5ForTokenClassification T5GemmaForConditionalGeneration UMT5EncoderModel
    UMT5ForTokenClassification Zamba2ForCausalLM ZambaForCausalLM
    """.split()
)

# Classes of configs in which the flag is true whatever config.json says.
ALWAYS = frozenset(
    """
    LongT5EncoderModel LongT5ForConditionalGeneration LongT5Model MT5EncoderModel MT5ForConditionalGeneration
    MT5ForQuestionAnswering MT5ForSequenceClassification MT5ForTokenClassification MT5Model
    Pop2PianoForConditionalGeneration T5EncoderModel T5ForConditionalGeneration T5ForQuestionAnswering
    T5ForSequenceClassification T5ForTokenClassification T5Model UMT5EncoderModel UMT5ForConditionalGeneration
    UMT5ForQuestionAnswering UMT5ForSequenceClassification UMT5ForTokenClassification UMT5Model UdopModel
    ViltForMaskedLM
    """.split()
)

# The input embedding, as `get_input_embeddings` gives it, where nothing is tied to that one -> the classes.
EMBEDDINGS: Mapping[str, str] = {
    "model.local_encoder.embed_tokens.weight": "BltForCausalLM",
    "model.encoder.embed_tokens.weight": "FSMTForConditionalGeneration MarianMTModel T5GemmaForConditionalGeneration",
    "encoder.embed_tokens.weight": "FSMTModel MarianModel",
    "model.embed_tokens.weight": "KyutaiSpeechToTextForConditionalGeneration",
    "luke.embeddings.word_embeddings.weight": "LukeForMaskedLM",
    "transformer.tokens_embed.weight": "OpenAIGPTDoubleHeadsModel",
    "prophetnet.decoder.word_embeddings.weight": "ProphetNetForCausalLM",
    "vision_encoder.patch_embed.weight": "SamHQModel SamModel",
    "text_decoder.embed_tokens.weight": (
        """
        SeamlessM4TForSpeechToText SeamlessM4TForTextToText SeamlessM4Tv2ForSpeechToText
        SeamlessM4Tv2ForTextToText
        """
    ),
}

# Classes with an input embedding that tie nothing to it, whatever the flag says: bodies, and heads of their own.
# Heads for classification and the like are told by their names.
UNTIED = frozenset(
    """
    AXK1Model AXK2Model AfmoeModel Aimv2TextModel AlbertModel AlignTextModel AltCLIPTextModel ApertusModel
    ArceeModel AriaModel AriaTextModel AudioFlamingo3ForConditionalGeneration AudioFlamingo3Model
    BailingHybridForCausalLM BailingHybridModel BambaModel BarkCausalModel BarkCoarseModel BarkSemanticModel
    BeamModel BertGenerationEncoder BertModel BigBirdModel BigBirdPegasusForCausalLM BioGptModel BitNetModel
    Blip2ForImageTextRetrieval Blip2TextModelWithProjection BlipForImageTextRetrieval BlipModel BlipTextModel
    BloomModel BltModel BltPatcher BridgeTowerForImageAndTextRetrieval BridgeTowerModel BrosModel CLIPSegTextModel
    CLIPTextModel CLIPTextModelWithProjection CTRLModel CamembertModel CanaryModel ChineseCLIPTextModel
    ClapTextModel ClapTextModelWithProjection ClvpDecoder ClvpEncoder ClvpForCausalLM ClvpModel CodeGenModel
    Cohere2Model Cohere2MoeModel Cohere2VisionModel CohereAsrModel CohereModel ColPaliForRetrieval
    ColQwen2ForRetrieval ConvBertModel Cosmos3EdgeForConditionalGeneration Cosmos3EdgeModel Cosmos3EdgeTextModel
    Cosmos3OmniModel CpmAntForCausalLM CsmBackboneModel CsmDepthDecoderForCausalLM CsmDepthDecoderModel CwmModel
    DPRContextEncoder DPRQuestionEncoder DPRReader Data2VecTextModel DebertaModel DebertaV2Model
    DecisionTransformerGPT2Model DeepseekV2Model DeepseekV32Model DeepseekV3Model DeepseekV4Model
    DeepseekVLHybridModel DeepseekVLModel DiffLlamaModel DistilBertModel DogeModel Dots3NoteModel Dots3NoteTextModel
    ElectraForPreTraining ElectraModel EmbeddingGemma2Model EmbeddingGemma2TextModel Emu3TextModel Ernie4_5Model
    Ernie4_5_MoeModel Ernie4_5_VLMoeModel Ernie4_5_VLMoeTextModel Ernie4_5_VL_MoeModel Ernie4_5_VL_MoeTextModel
    ErnieModel EsmcForMaskedLM EsmcModel EuroBertModel EvollaForProteinText2Text EvollaModel Exaone4Model
    Exaone4_5_Model ExaoneMoeModel FNetModel FalconH1Model FalconMambaModel FalconModel
    FlaubertForQuestionAnsweringSimple FlaubertModel FlavaTextModel FlexOlmoModel FlintModel FunAsrNanoModel
    FunnelBaseModel FunnelForPreTraining FunnelModel FuyuModel GPT2Model GPTBigCodeModel GPTJModel GPTNeoModel
    GPTNeoXJapaneseModel GPTNeoXModel Gemma2Model Gemma3Model Gemma3TextModel Gemma3nTextModel Gemma4Model
    Gemma4TextModel Gemma4UnifiedModel Gemma4UnifiedTextModel GemmaModel GitModel Glm46VModel Glm4Model
    Glm4MoeLiteModel Glm4MoeModel Glm4vModel Glm4vMoeModel Glm4vMoeTextModel Glm4vTextModel Glm5NextModel
    Glm5NextTextModel GlmAsrModel GlmImageForConditionalGeneration GlmImageModel GlmImageTextModel GlmModel
    GlmMoeDsaModel GlmOcrModel GlmOcrTextModel GotOcr2Model GptOssModel GradiumPhononTTSForConditionalGeneration
    GradiumPhononTTSModel Granite4VisionTextModel GraniteDoclingModel GraniteDoclingTextModel GraniteModel
    GraniteMoeHybridModel GraniteMoeModel GraniteMoeSWAModel GraniteMoeSharedModel GraniteSWAModel
    GraniteSpeechModel GraniteSpeechPlusModel GroupViTTextModel GteModel HYV3Model HYV4Model HeliumModel
    HiggsAudioV2ForConditionalGeneration HiggsAudioV2Model HrmTextModel HyperCLOVAXModel HyperCLOVAXVisionV2Model
    IBertModel Idefics2Model Idefics3Model IdeficsModel ImageGPTModel Inkling2ForCausalLM
    Inkling2ForConditionalGeneration Inkling2Model Inkling2TextModel InklingForCausalLM
    InklingForConditionalGeneration InklingModel InklingTextModel InstructBlipModel InstructBlipQFormerModel
    InstructBlipVideoModel InstructBlipVideoQFormerModel InternVLModel Jais2Model JambaModel JanusModel JetMoeModel
    JevForDecision JinaEmbeddingsV3Model KimiLinearForCausalLM KimiLinearModel Kimi_K25Model Kolibri1Model
    Kosmos2Model Kosmos2_5Model KyutaiSpeechToTextModel LagunaModel LayoutLMModel LayoutLMv3Model Lfm2Model
    Lfm2VlModel Lfm3Model Lfm3VlModel LightOnOcrModel LiltModel Llama4TextModel LlamaModel LlavaModel LlavaNextModel
    LlavaNextVideoModel LlavaOnevisionModel LongcatFlashModel LongformerModel LukeModel LxmertModel MPNetModel
    Mamba2Model MambaModel MarkupLMModel MegatronBertModel MellumModel MetaClip2TextModel
    MetaClip2TextModelWithProjection MiMoV2FlashModel MiniCPM3Model MiniCPMOcrModel MiniCPMV4_6Model
    MiniCPMV4_7Model MiniMaxM2Model MiniMaxM3VLModel MiniMaxM3VLTextModel MiniMaxModel Ministral3Model Mistral3Model
    Mistral4Model MistralLarge4Model MistralLarge4TextModel MistralModel MixtralModel MllamaForCausalLM
    MllamaForConditionalGeneration MllamaModel MllamaTextModel MobileBertModel ModernBertDecoderModel
    ModernBertModel Molmo2ForConditionalGeneration Molmo2Model Molmo2TextModel MoonshineModel MoshiForCausalLM
    MoshiModel MossTranscribeDiarizeModel MptModel MraModel MuseGlimmerModel MuseGlimmerTextModel
    MuseSparkForConditionalGeneration MuseSparkModel MuseSparkTextModel MusicFlamingoForConditionalGeneration
    MusicFlamingoModel MusicgenForCausalLM MusicgenMelodyForCausalLM MusicgenMelodyModel MusicgenModel NanoChatModel
    NemotronHForCausalLM NemotronHModel NeoMMEForRetrieval NeoMMEModel NomicBertModel NystromformerModel OPTModel
    Olmo2Model Olmo3Model OlmoHybridModel OlmoModel OlmoeModel OpenAIGPTModel OpenAIPrivacyFilterModel Ovis2Model
    OwlViTTextModel Owlv2TextModel PI0ForConditionalGeneration PI0Model PPFormulaNetTextModel PaddleOCRTextModel
    PaddleOCRVLModel PaliGemmaModel PersimmonModel Phi3Model Phi4MultimodalModel PhiModel PhimoeModel
    PocketTTSForConditionalGeneration PocketTTSModel ProphetNetDecoder ProphetNetEncoder QianfanOCRModel
    Qwen2AudioForConditionalGeneration Qwen2AudioModel Qwen2Model Qwen2MoeModel Qwen2VLModel Qwen2VLTextModel
    Qwen2_5OmniTalkerForConditionalGeneration Qwen2_5OmniTalkerModel Qwen2_5OmniThinkerModel
    Qwen2_5OmniThinkerTextModel Qwen2_5_VLModel Qwen2_5_VLTextModel Qwen3ASRModel Qwen3Model Qwen3MoeModel
    Qwen3NextModel Qwen3OmniMoeTalkerCodePredictorModel Qwen3OmniMoeThinkerModel Qwen3OmniMoeThinkerTextModel
    Qwen3VLModel Qwen3VLMoeModel Qwen3VLMoeTextModel Qwen3VLTextModel Qwen3_5Model Qwen3_5MoeModel
    Qwen3_5MoeTextModel Qwen3_5TextModel Qwen4ExpModel Qwen4ExpTextModel RecurrentGemmaModel ReformerForMaskedLM
    ReformerModel RemBertForCausalLM RemBertForMaskedLM RemBertModel RoCBertModel RoFormerModel RobertaModel
    RobertaPreLayerNormModel RwkvModel SeedOssModel Siglip2TextModel SiglipTextModel SmolLM3Model SmolVLMModel
    SolarOpenModel Speech2TextModel SpeechT5ForTextToSpeech SplinterForPreTraining SplinterModel SqueezeBertModel
    StableLmModel Starcoder2Model Step3p7Model Step3p7TextModel T5GemmaModel TapasModel Tipsv2TextModel
    TvpForVideoGrounding TvpModel UltraVBertModel UltrabertModel UnlimitedOcrModel UnlimitedOcrTextModel
    VaultGemmaModel VibeVoiceAsrForConditionalGeneration VibeVoiceAsrModel VibeVoiceModel VideoLlama3Model
    VideoLlavaModel VideoPrismTextModel ViltForImageAndTextRetrieval ViltModel VipLlavaModel
    VisualBertForVisualReasoning VisualBertModel VoxtralForConditionalGeneration VoxtralModel VoxtralRealtimeModel
    WhisperModel XCLIPTextModel XGLMModel XLMForQuestionAnsweringSimple XLMModel XLMRobertaModel XLMRobertaXLModel
    XLNetForQuestionAnsweringSimple XLNetModel XmodModel YosoModel YoutuModel Zamba2Model ZambaModel ZayaModel
    xLSTMForCausalLM xLSTMModel
    """.split()
)
