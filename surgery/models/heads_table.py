"""The heads of transformers' classes: which tensors each has beside its body, by name. A test compares it with the
classes.

Generated from transformers 5.23.0: classes of text, speech and image models of which PEFT trains heads; one that is
not here is not known.
"""

from __future__ import annotations

from collections.abc import Mapping

# The tensors of a head -> the classes that have it, each after a model type whose files it loads.
CLASSES: Mapping[str, str] = {
    "lm_head.weight": (
        """
        afmoe/AfmoeForCausalLM apertus/ApertusForCausalLM arcee/ArceeForCausalLM aria/AriaForConditionalGeneration
        aria_text/AriaTextForCausalLM audioflamingo3/AudioFlamingo3ForConditionalGeneration axk1/AXK1ForCausalLM
        axk2/AXK2ForCausalLM bailing_hybrid/BailingHybridForCausalLM bamba/BambaForCausalLM bart/BartForCausalLM
        bart/BartForConditionalGeneration beam/BeamForCausalLM bigbird_pegasus/BigBirdPegasusForCausalLM
        bigbird_pegasus/BigBirdPegasusForConditionalGeneration bitnet/BitNetForCausalLM
        blenderbot-small/BlenderbotSmallForCausalLM blenderbot-small/BlenderbotSmallForConditionalGeneration
        blenderbot/BlenderbotForCausalLM blenderbot/BlenderbotForConditionalGeneration bloom/BloomForCausalLM
        blt/BltForCausalLM cohere/CohereForCausalLM cohere2/Cohere2ForCausalLM cohere2_moe/Cohere2MoeForCausalLM
        cohere2_vision/Cohere2VisionForConditionalGeneration cosmos3_edge/Cosmos3EdgeForConditionalGeneration
        cosmos3_omni/Cosmos3OmniForConditionalGeneration cpmant/CpmAntForCausalLM cwm/CwmForCausalLM
        deepseek_v2/DeepseekV2ForCausalLM deepseek_v3/DeepseekV3ForCausalLM deepseek_v32/DeepseekV32ForCausalLM
        deepseek_v4/DeepseekV4ForCausalLM deepseek_vl/DeepseekVLForConditionalGeneration
        deepseek_vl_hybrid/DeepseekVLHybridForConditionalGeneration diffllama/DiffLlamaForCausalLM
        doge/DogeForCausalLM dots3_note/Dots3NoteForConditionalGeneration dots3_note_text/Dots3NoteForCausalLM
        ernie4_5/Ernie4_5ForCausalLM ernie4_5_moe/Ernie4_5_MoeForCausalLM
        ernie4_5_vl_moe/Ernie4_5_VLMoeForConditionalGeneration eurobert/EuroBertForMaskedLM exaone4/Exaone4ForCausalLM
        exaone4_5/Exaone4_5_ForConditionalGeneration exaone_moe/ExaoneMoeForCausalLM falcon/FalconForCausalLM
        falcon_h1/FalconH1ForCausalLM falcon_mamba/FalconMambaForCausalLM flex_olmo/FlexOlmoForCausalLM
        flint/FlintForCausalLM florence2/Florence2ForConditionalGeneration
        fun_asr_nano/FunAsrNanoForConditionalGeneration fuyu/FuyuForCausalLM gemma/GemmaForCausalLM
        gemma2/Gemma2ForCausalLM gemma3/Gemma3ForConditionalGeneration gemma3_text/Gemma3ForCausalLM
        gemma3n_text/Gemma3nForCausalLM gemma4/Gemma4ForConditionalGeneration gemma4_text/Gemma4ForCausalLM
        gemma4_unified/Gemma4UnifiedForConditionalGeneration gemma4_unified_text/Gemma4UnifiedForCausalLM
        glm/GlmForCausalLM glm4/Glm4ForCausalLM glm46v/Glm46VForConditionalGeneration glm4_moe/Glm4MoeForCausalLM
        glm4_moe_lite/Glm4MoeLiteForCausalLM glm4v/Glm4vForConditionalGeneration
        glm4v_moe/Glm4vMoeForConditionalGeneration glm5_next/Glm5NextForConditionalGeneration
        glm_moe_dsa/GlmMoeDsaForCausalLM glm_ocr/GlmOcrForConditionalGeneration glmasr/GlmAsrForConditionalGeneration
        glmga/Glm46VForConditionalGeneration got_ocr2/GotOcr2ForConditionalGeneration gpt-sw3/GPT2LMHeadModel
        gpt2/GPT2LMHeadModel gpt_bigcode/GPTBigCodeForCausalLM gpt_neo/GPTNeoForCausalLM gpt_neox/GPTNeoXForCausalLM
        gpt_oss/GptOssForCausalLM granite/GraniteForCausalLM granite_docling/GraniteDoclingForConditionalGeneration
        granite_speech/GraniteSpeechForConditionalGeneration
        granite_speech_plus/GraniteSpeechPlusForConditionalGeneration granite_swa/GraniteSWAForCausalLM
        granitemoe/GraniteMoeForCausalLM granitemoe_swa/GraniteMoeSWAForCausalLM
        granitemoehybrid/GraniteMoeHybridForCausalLM granitemoeshared/GraniteMoeSharedForCausalLM
        helium/HeliumForCausalLM hrm_text/HrmTextForCausalLM hunyuan_v1_dense/HunYuanDenseV1ForCausalLM
        hunyuan_v1_moe/HunYuanMoEV1ForCausalLM hy_v3/HYV3ForCausalLM hy_v4/HYV4ForCausalLM
        hyperclovax/HyperCLOVAXForCausalLM hyperclovax_vision_v2/HyperCLOVAXVisionV2ForConditionalGeneration
        idefics2/Idefics2ForConditionalGeneration idefics3/Idefics3ForConditionalGeneration
        inkling2/Inkling2ForConditionalGeneration inkling2_text/Inkling2ForCausalLM
        inkling_mm_model/InklingForConditionalGeneration inkling_text/InklingForCausalLM internlm3/LlamaForCausalLM
        internvl/InternVLForConditionalGeneration iquestcoder/LlamaForCausalLM jais2/Jais2ForCausalLM
        jamba/JambaForCausalLM janus/JanusForConditionalGeneration jetmoe/JetMoeForCausalLM
        kimi_k25/Kimi_K25ForConditionalGeneration kimi_linear/KimiLinearForCausalLM kolibri1/Kolibri1ForCausalLM
        laguna/LagunaForCausalLM led/LEDForConditionalGeneration lfm2/Lfm2ForCausalLM lfm2_moe/Lfm2MoeForCausalLM
        lfm2_vl/Lfm2VlForConditionalGeneration lfm3/Lfm3ForCausalLM lfm3_vl/Lfm3VlForConditionalGeneration
        lighton_ocr/LightOnOcrForConditionalGeneration llama/LlamaForCausalLM llava/LlavaForConditionalGeneration
        llava_next/LlavaNextForConditionalGeneration llava_next_video/LlavaNextVideoForConditionalGeneration
        llava_onevision/LlavaOnevisionForConditionalGeneration longcat_flash/LongcatFlashForCausalLM
        longt5/LongT5ForConditionalGeneration m2m_100/M2M100ForConditionalGeneration mamba/MambaForCausalLM
        mamba2/Mamba2ForCausalLM marian/MarianForCausalLM mbart/MBartForCausalLM mbart/MBartForConditionalGeneration
        mellum/MellumForCausalLM mimo_v2_flash/MiMoV2FlashForCausalLM minicpm3/MiniCPM3ForCausalLM
        minicpm_ocr/MiniCPMOcrForConditionalGeneration minicpmv4_6/MiniCPMV4_6ForConditionalGeneration
        minicpmv4_7/MiniCPMV4_7ForConditionalGeneration minimax/MiniMaxForCausalLM minimax_m2/MiniMaxM2ForCausalLM
        minimax_m3_vl/MiniMaxM3SparseForConditionalGeneration minimax_m3_vl_text/MiniMaxM3VLForCausalLM
        ministral/MinistralForCausalLM ministral3/Ministral3ForCausalLM mistral/MistralForCausalLM
        mistral3/Mistral3ForConditionalGeneration mistral4/Mistral4ForCausalLM
        mistral_large4/MistralLarge4ForConditionalGeneration mixtral/MixtralForCausalLM
        mllama/MllamaForConditionalGeneration molmo2/Molmo2ForConditionalGeneration moshi/MoshiForCausalLM
        moss_transcribe_diarize/MossTranscribeDiarizeForConditionalGeneration mpt/MptForCausalLM
        mt5/MT5ForConditionalGeneration muse_glimmer/MuseGlimmerForConditionalGeneration
        muse_spark/MuseSparkForConditionalGeneration musicflamingo/MusicFlamingoForConditionalGeneration
        mvp/MvpForCausalLM mvp/MvpForConditionalGeneration nanochat/NanoChatForCausalLM nemotron/NemotronForCausalLM
        nemotron_h/NemotronHForCausalLM nllb-moe/NllbMoeForConditionalGeneration olmo/OlmoForCausalLM
        olmo2/Olmo2ForCausalLM olmo3/Olmo3ForCausalLM olmo_hybrid/OlmoHybridForCausalLM olmoe/OlmoeForCausalLM
        openai-gpt/OpenAIGPTLMHeadModel opt/OPTForCausalLM ovis2/Ovis2ForConditionalGeneration
        paddleocr_vl/PaddleOCRVLForConditionalGeneration paligemma/PaliGemmaForConditionalGeneration
        pegasus/PegasusForCausalLM pegasus/PegasusForConditionalGeneration pegasus_x/PegasusXForConditionalGeneration
        persimmon/PersimmonForCausalLM phi3/Phi3ForCausalLM phi4_multimodal/Phi4MultimodalForCausalLM
        phimoe/PhimoeForCausalLM plbart/PLBartForCausalLM plbart/PLBartForConditionalGeneration
        pp_chart2table/GotOcr2ForConditionalGeneration pp_formulanet/PPFormulaNetForConditionalGeneration
        prophetnet/ProphetNetForCausalLM prophetnet/ProphetNetForConditionalGeneration
        qianfan_ocr/QianfanOCRForConditionalGeneration qwen2/Qwen2ForCausalLM
        qwen2_5_omni_thinker/Qwen2_5OmniThinkerForConditionalGeneration qwen2_5_vl/Qwen2_5_VLForConditionalGeneration
        qwen2_audio/Qwen2AudioForConditionalGeneration qwen2_moe/Qwen2MoeForCausalLM
        qwen2_vl/Qwen2VLForConditionalGeneration qwen3/Qwen3ForCausalLM qwen3_5/Qwen3_5ForConditionalGeneration
        qwen3_5_moe/Qwen3_5MoeForConditionalGeneration qwen3_5_moe_text/Qwen3_5MoeForCausalLM
        qwen3_5_text/Qwen3_5ForCausalLM qwen3_asr/Qwen3ASRForConditionalGeneration qwen3_moe/Qwen3MoeForCausalLM
        qwen3_next/Qwen3NextForCausalLM qwen3_omni_moe_thinker/Qwen3OmniMoeThinkerForConditionalGeneration
        qwen3_vl/Qwen3VLForConditionalGeneration qwen3_vl_moe/Qwen3VLMoeForConditionalGeneration
        qwen4_exp/Qwen4ExpForConditionalGeneration qwen4_exp_text/Qwen4ExpForCausalLM
        recurrent_gemma/RecurrentGemmaForCausalLM seed_oss/SeedOssForCausalLM
        shieldgemma2/Gemma3ForConditionalGeneration smollm3/SmolLM3ForCausalLM smolvlm/SmolVLMForConditionalGeneration
        solar_open/SolarOpenForCausalLM speech_to_text/Speech2TextForConditionalGeneration
        stablelm/StableLmForCausalLM starcoder2/Starcoder2ForCausalLM step3p7/Step3p7ForConditionalGeneration
        switch_transformers/SwitchTransformersForConditionalGeneration t5/T5ForConditionalGeneration
        udop/UdopForConditionalGeneration umt5/UMT5ForConditionalGeneration
        unlimited_ocr/UnlimitedOcrForConditionalGeneration vaultgemma/VaultGemmaForCausalLM
        vibevoice/VibeVoiceForConditionalGeneration vibevoice_asr/VibeVoiceAsrForConditionalGeneration
        video_llama_3/VideoLlama3ForConditionalGeneration video_llava/VideoLlavaForConditionalGeneration
        vipllava/VipLlavaForConditionalGeneration voxtral/VoxtralForConditionalGeneration
        voxtral_realtime/VoxtralRealtimeForConditionalGeneration xglm/XGLMForCausalLM xlstm/xLSTMForCausalLM
        youtu/YoutuForCausalLM zamba/ZambaForCausalLM zamba2/Zamba2ForCausalLM zaya/ZayaForCausalLM
    """
    ),
    "classifier.bias classifier.weight": (
        """
        albert/AlbertForMultipleChoice albert/AlbertForSequenceClassification albert/AlbertForTokenClassification
        beit/BeitForImageClassification bert/BertForMultipleChoice bert/BertForSequenceClassification
        bert/BertForTokenClassification big_bird/BigBirdForMultipleChoice big_bird/BigBirdForTokenClassification
        biogpt/BioGptForTokenClassification bloom/BloomForTokenClassification bros/BrosForTokenClassification
        camembert/CamembertForMultipleChoice camembert/CamembertForTokenClassification canine/CanineForMultipleChoice
        canine/CanineForSequenceClassification canine/CanineForTokenClassification clip/CLIPForImageClassification
        convbert/ConvBertForMultipleChoice convbert/ConvBertForTokenClassification
        convnext/ConvNextForImageClassification convnextv2/ConvNextV2ForImageClassification
        data2vec-audio/Data2VecAudioForAudioFrameClassification data2vec-text/Data2VecTextForMultipleChoice
        data2vec-text/Data2VecTextForTokenClassification data2vec-vision/Data2VecVisionForImageClassification
        deberta-v2/DebertaV2ForTokenClassification deberta/DebertaForTokenClassification
        deit/DeiTForImageClassification dinov2/Dinov2ForImageClassification
        dinov2_with_registers/Dinov2WithRegistersForImageClassification distilbert/DistilBertForTokenClassification
        donut-swin/DonutSwinForImageClassification efficientnet/EfficientNetForImageClassification
        electra/ElectraForTokenClassification ernie/ErnieForMultipleChoice ernie/ErnieForSequenceClassification
        ernie/ErnieForTokenClassification eurobert/EuroBertForTokenClassification falcon/FalconForTokenClassification
        flaubert/FlaubertForTokenClassification fnet/FNetForMultipleChoice fnet/FNetForSequenceClassification
        fnet/FNetForTokenClassification focalnet/FocalNetForImageClassification funnel/FunnelForTokenClassification
        gpt-sw3/GPT2ForTokenClassification gpt2/GPT2ForTokenClassification
        gpt_bigcode/GPTBigCodeForTokenClassification gpt_neo/GPTNeoForTokenClassification
        gpt_neox/GPTNeoXForTokenClassification gte/GteForSequenceClassification gte/GteForTokenClassification
        hiera/HieraForImageClassification ibert/IBertForMultipleChoice ibert/IBertForTokenClassification
        ijepa/IJepaForImageClassification jina_embeddings_v3/JinaEmbeddingsV3ForTokenClassification
        layoutlm/LayoutLMForSequenceClassification layoutlm/LayoutLMForTokenClassification
        layoutlmv3/LayoutLMv3ForTokenClassification lilt/LiltForTokenClassification
        longformer/LongformerForMultipleChoice longformer/LongformerForTokenClassification luke/LukeForMultipleChoice
        luke/LukeForSequenceClassification luke/LukeForTokenClassification markuplm/MarkupLMForSequenceClassification
        markuplm/MarkupLMForTokenClassification megatron-bert/MegatronBertForMultipleChoice
        megatron-bert/MegatronBertForSequenceClassification megatron-bert/MegatronBertForTokenClassification
        metaclip_2/MetaClip2ForImageClassification mobilebert/MobileBertForMultipleChoice
        mobilebert/MobileBertForSequenceClassification mobilebert/MobileBertForTokenClassification
        mobilenet_v1/MobileNetV1ForImageClassification mobilenet_v2/MobileNetV2ForImageClassification
        mobilevit/MobileViTForImageClassification mobilevitv2/MobileViTV2ForImageClassification
        mpnet/MPNetForMultipleChoice mpnet/MPNetForTokenClassification mpt/MptForTokenClassification
        mra/MraForTokenClassification mt5/MT5ForTokenClassification nomic_bert/NomicBertForSequenceClassification
        nomic_bert/NomicBertForTokenClassification nystromformer/NystromformerForTokenClassification
        pvt/PvtForImageClassification pvt_v2/PvtV2ForImageClassification rembert/RemBertForMultipleChoice
        rembert/RemBertForSequenceClassification rembert/RemBertForTokenClassification
        roberta-prelayernorm/RobertaPreLayerNormForMultipleChoice
        roberta-prelayernorm/RobertaPreLayerNormForTokenClassification roberta/RobertaForMultipleChoice
        roberta/RobertaForTokenClassification roc_bert/RoCBertForMultipleChoice
        roc_bert/RoCBertForSequenceClassification roc_bert/RoCBertForTokenClassification
        roformer/RoFormerForMultipleChoice roformer/RoFormerForTokenClassification
        segformer/SegformerForImageClassification siglip/SiglipForImageClassification
        siglip2/Siglip2ForImageClassification squeezebert/SqueezeBertForMultipleChoice
        squeezebert/SqueezeBertForSequenceClassification squeezebert/SqueezeBertForTokenClassification
        swin/SwinForImageClassification swinv2/Swinv2ForImageClassification t5/T5ForTokenClassification
        tapas/TapasForSequenceClassification timesformer/TimesformerForVideoClassification
        ultrabert/UltrabertForSequenceClassification ultrabert/UltrabertForTokenClassification
        ultravbert/UltraVBertForSequenceClassification ultravbert/UltraVBertForTokenClassification
        umt5/UMT5ForTokenClassification unispeech-sat/UniSpeechSatForAudioFrameClassification
        vit/ViTForImageClassification vit_msn/ViTMSNForImageClassification vivit/VivitForVideoClassification
        wav2vec2-bert/Wav2Vec2BertForAudioFrameClassification
        wav2vec2-conformer/Wav2Vec2ConformerForAudioFrameClassification wav2vec2/Wav2Vec2ForAudioFrameClassification
        wavlm/WavLMForAudioFrameClassification xlm-roberta-xl/XLMRobertaXLForMultipleChoice
        xlm-roberta-xl/XLMRobertaXLForTokenClassification xlm-roberta/XLMRobertaForMultipleChoice
        xlm-roberta/XLMRobertaForTokenClassification xlm/XLMForTokenClassification xlnet/XLNetForTokenClassification
        xmod/XmodForMultipleChoice xmod/XmodForTokenClassification yoso/YosoForTokenClassification
    """
    ),
    "qa_outputs.bias qa_outputs.weight": (
        """
        albert/AlbertForQuestionAnswering arcee/ArceeForQuestionAnswering bart/BartForQuestionAnswering
        bert/BertForQuestionAnswering bigbird_pegasus/BigBirdPegasusForQuestionAnswering
        bloom/BloomForQuestionAnswering camembert/CamembertForQuestionAnswering canine/CanineForQuestionAnswering
        convbert/ConvBertForQuestionAnswering data2vec-text/Data2VecTextForQuestionAnswering
        deberta-v2/DebertaV2ForQuestionAnswering deberta/DebertaForQuestionAnswering
        diffllama/DiffLlamaForQuestionAnswering distilbert/DistilBertForQuestionAnswering
        electra/ElectraForQuestionAnswering ernie/ErnieForQuestionAnswering exaone4/Exaone4ForQuestionAnswering
        falcon/FalconForQuestionAnswering flaubert/FlaubertForQuestionAnsweringSimple fnet/FNetForQuestionAnswering
        funnel/FunnelForQuestionAnswering gpt2/GPT2ForQuestionAnswering gpt_neo/GPTNeoForQuestionAnswering
        gpt_neox/GPTNeoXForQuestionAnswering gptj/GPTJForQuestionAnswering ibert/IBertForQuestionAnswering
        jina_embeddings_v3/JinaEmbeddingsV3ForQuestionAnswering layoutlm/LayoutLMForQuestionAnswering
        led/LEDForQuestionAnswering lilt/LiltForQuestionAnswering llama/LlamaForQuestionAnswering
        longformer/LongformerForQuestionAnswering luke/LukeForQuestionAnswering markuplm/MarkupLMForQuestionAnswering
        mbart/MBartForQuestionAnswering megatron-bert/MegatronBertForQuestionAnswering
        minimax/MiniMaxForQuestionAnswering ministral/MinistralForQuestionAnswering
        ministral3/Ministral3ForQuestionAnswering mistral/MistralForQuestionAnswering
        mixtral/MixtralForQuestionAnswering mobilebert/MobileBertForQuestionAnswering mpnet/MPNetForQuestionAnswering
        mpt/MptForQuestionAnswering mra/MraForQuestionAnswering mt5/MT5ForQuestionAnswering
        mvp/MvpForQuestionAnswering nemotron/NemotronForQuestionAnswering
        nystromformer/NystromformerForQuestionAnswering opt/OPTForQuestionAnswering qwen2/Qwen2ForQuestionAnswering
        qwen2_moe/Qwen2MoeForQuestionAnswering qwen3/Qwen3ForQuestionAnswering qwen3_moe/Qwen3MoeForQuestionAnswering
        qwen3_next/Qwen3NextForQuestionAnswering reformer/ReformerForQuestionAnswering
        rembert/RemBertForQuestionAnswering roberta-prelayernorm/RobertaPreLayerNormForQuestionAnswering
        roberta/RobertaForQuestionAnswering roc_bert/RoCBertForQuestionAnswering roformer/RoFormerForQuestionAnswering
        seed_oss/SeedOssForQuestionAnswering smollm3/SmolLM3ForQuestionAnswering
        squeezebert/SqueezeBertForQuestionAnswering t5/T5ForQuestionAnswering ultrabert/UltrabertForQuestionAnswering
        umt5/UMT5ForQuestionAnswering xlm-roberta-xl/XLMRobertaXLForQuestionAnswering
        xlm-roberta/XLMRobertaForQuestionAnswering xlm/XLMForQuestionAnsweringSimple
        xlnet/XLNetForQuestionAnsweringSimple xmod/XmodForQuestionAnswering yoso/YosoForQuestionAnswering
    """
    ),
    "score.weight": (
        """
        arcee/ArceeForSequenceClassification axk1/AXK1ForSequenceClassification axk2/AXK2ForSequenceClassification
        biogpt/BioGptForSequenceClassification bloom/BloomForSequenceClassification
        deepseek_v2/DeepseekV2ForSequenceClassification deepseek_v3/DeepseekV3ForSequenceClassification
        diffllama/DiffLlamaForSequenceClassification doge/DogeForSequenceClassification
        exaone4/Exaone4ForSequenceClassification falcon/FalconForSequenceClassification
        gemma/GemmaForSequenceClassification gemma2/Gemma2ForSequenceClassification
        gemma3/Gemma3ForSequenceClassification gemma3_text/Gemma3TextForSequenceClassification
        glm/GlmForSequenceClassification glm4/Glm4ForSequenceClassification gpt-sw3/GPT2ForSequenceClassification
        gpt2/GPT2ForSequenceClassification gpt_bigcode/GPTBigCodeForSequenceClassification
        gpt_neo/GPTNeoForSequenceClassification gpt_neox/GPTNeoXForSequenceClassification
        gpt_oss/GptOssForSequenceClassification gptj/GPTJForSequenceClassification
        helium/HeliumForSequenceClassification hunyuan_v1_dense/HunYuanDenseV1ForSequenceClassification
        hunyuan_v1_moe/HunYuanMoEV1ForSequenceClassification imagegpt/ImageGPTForImageClassification
        jamba/JambaForSequenceClassification jetmoe/JetMoeForSequenceClassification
        llama/LlamaForSequenceClassification minicpm3/MiniCPM3ForSequenceClassification
        minimax/MiniMaxForSequenceClassification ministral/MinistralForSequenceClassification
        ministral3/Ministral3ForSequenceClassification mistral/MistralForSequenceClassification
        mistral4/Mistral4ForSequenceClassification mixtral/MixtralForSequenceClassification
        mpt/MptForSequenceClassification nemotron/NemotronForSequenceClassification olmo/OlmoForSequenceClassification
        olmo2/Olmo2ForSequenceClassification olmo3/Olmo3ForSequenceClassification
        openai-gpt/OpenAIGPTForSequenceClassification opt/OPTForSequenceClassification
        persimmon/PersimmonForSequenceClassification phi/PhiForSequenceClassification
        phi3/Phi3ForSequenceClassification phimoe/PhimoeForSequenceClassification qwen2/Qwen2ForSequenceClassification
        qwen2_moe/Qwen2MoeForSequenceClassification qwen3/Qwen3ForSequenceClassification
        qwen3_5/Qwen3_5ForSequenceClassification qwen3_5_text/Qwen3_5TextForSequenceClassification
        qwen3_asr/Qwen3ASRForTokenClassification qwen3_moe/Qwen3MoeForSequenceClassification
        qwen3_next/Qwen3NextForSequenceClassification seed_oss/SeedOssForSequenceClassification
        smollm3/SmolLM3ForSequenceClassification stablelm/StableLmForSequenceClassification
        starcoder2/Starcoder2ForSequenceClassification zamba/ZambaForSequenceClassification
        zamba2/Zamba2ForSequenceClassification
    """
    ),
    "score.bias score.weight": (
        """
        apertus/ApertusForTokenClassification arcee/ArceeForTokenClassification axk1/AXK1ForTokenClassification
        axk2/AXK2ForTokenClassification deepseek_v3/DeepseekV3ForTokenClassification
        diffllama/DiffLlamaForTokenClassification esmc/EsmcForTokenClassification
        exaone4/Exaone4ForTokenClassification gemma/GemmaForTokenClassification gemma2/Gemma2ForTokenClassification
        glm/GlmForTokenClassification glm4/Glm4ForTokenClassification gpt_oss/GptOssForTokenClassification
        helium/HeliumForTokenClassification llama/LlamaForTokenClassification minimax/MiniMaxForTokenClassification
        ministral/MinistralForTokenClassification ministral3/Ministral3ForTokenClassification
        mistral/MistralForTokenClassification mistral4/Mistral4ForTokenClassification
        mixtral/MixtralForTokenClassification nemotron/NemotronForTokenClassification
        openai_privacy_filter/OpenAIPrivacyFilterForTokenClassification persimmon/PersimmonForTokenClassification
        phi/PhiForTokenClassification phi3/Phi3ForTokenClassification qwen2/Qwen2ForTokenClassification
        qwen2_moe/Qwen2MoeForTokenClassification qwen3/Qwen3ForTokenClassification
        qwen3_5/Qwen3_5ForTokenClassification qwen3_moe/Qwen3MoeForTokenClassification
        qwen3_next/Qwen3NextForTokenClassification seed_oss/SeedOssForTokenClassification
        smollm3/SmolLM3ForTokenClassification stablelm/StableLmForTokenClassification
        starcoder2/Starcoder2ForTokenClassification
    """
    ),
    "classifier.dense.bias classifier.dense.weight classifier.out_proj.bias classifier.out_proj.weight": (
        """
        big_bird/BigBirdForSequenceClassification camembert/CamembertForSequenceClassification
        convbert/ConvBertForSequenceClassification data2vec-text/Data2VecTextForSequenceClassification
        electra/ElectraForSequenceClassification esmc/EsmcForSequenceClassification
        ibert/IBertForSequenceClassification jina_embeddings_v3/JinaEmbeddingsV3ForSequenceClassification
        layoutlmv3/LayoutLMv3ForSequenceClassification lilt/LiltForSequenceClassification
        longformer/LongformerForSequenceClassification mpnet/MPNetForSequenceClassification
        mra/MraForSequenceClassification nystromformer/NystromformerForSequenceClassification
        reformer/ReformerForSequenceClassification roberta-prelayernorm/RobertaPreLayerNormForSequenceClassification
        roberta/RobertaForSequenceClassification roformer/RoFormerForSequenceClassification
        xlm-roberta-xl/XLMRobertaXLForSequenceClassification xlm-roberta/XLMRobertaForSequenceClassification
        xmod/XmodForSequenceClassification yoso/YosoForSequenceClassification
    """
    ),
    "cls.predictions.bias cls.predictions.decoder.bias cls.predictions.decoder.weight cls.predictions.transform.LayerNorm.bias cls.predictions.transform.LayerNorm.weight cls.predictions.transform.dense.bias cls.predictions.transform.dense.weight": (
        """
        bert/BertForMaskedLM bert/BertLMHeadModel big_bird/BigBirdForCausalLM big_bird/BigBirdForMaskedLM
        deberta-v2/DebertaV2ForMaskedLM deberta/DebertaForMaskedLM ernie/ErnieForCausalLM ernie/ErnieForMaskedLM
        fnet/FNetForMaskedLM layoutlm/LayoutLMForMaskedLM megatron-bert/MegatronBertForCausalLM
        megatron-bert/MegatronBertForMaskedLM mra/MraForMaskedLM nystromformer/NystromformerForMaskedLM
        roc_bert/RoCBertForCausalLM roc_bert/RoCBertForMaskedLM roc_bert/RoCBertForPreTraining
        roformer/RoFormerForCausalLM roformer/RoFormerForMaskedLM squeezebert/SqueezeBertForMaskedLM
        tapas/TapasForMaskedLM yoso/YosoForMaskedLM
    """
    ),
    "lm_head.bias lm_head.decoder.bias lm_head.decoder.weight lm_head.dense.bias lm_head.dense.weight lm_head.layer_norm.bias lm_head.layer_norm.weight": (
        """
        camembert/CamembertForCausalLM camembert/CamembertForMaskedLM data2vec-text/Data2VecTextForCausalLM
        data2vec-text/Data2VecTextForMaskedLM ibert/IBertForMaskedLM jina_embeddings_v3/JinaEmbeddingsV3ForMaskedLM
        longformer/LongformerForMaskedLM mpnet/MPNetForMaskedLM roberta-prelayernorm/RobertaPreLayerNormForCausalLM
        roberta-prelayernorm/RobertaPreLayerNormForMaskedLM roberta/RobertaForCausalLM roberta/RobertaForMaskedLM
        xlm-roberta-xl/XLMRobertaXLForCausalLM xlm-roberta-xl/XLMRobertaXLForMaskedLM
        xlm-roberta/XLMRobertaForCausalLM xlm-roberta/XLMRobertaForMaskedLM xmod/XmodForCausalLM xmod/XmodForMaskedLM
    """
    ),
    "lm_head.bias lm_head.weight": (
        """
        codegen/CodeGenForCausalLM ctrl/CTRLLMHeadModel data2vec-audio/Data2VecAudioForCTC funnel/FunnelForMaskedLM
        gptj/GPTJForCausalLM hubert/HubertForCTC phi/PhiForCausalLM sew-d/SEWDForCTC sew/SEWForCTC
        unispeech-sat/UniSpeechSatForCTC unispeech/UniSpeechForCTC wav2vec2/Wav2Vec2ForCTC wavlm/WavLMForCTC
    """
    ),
    "classifier.bias classifier.weight projector.bias projector.weight": (
        """
        data2vec-audio/Data2VecAudioForSequenceClassification hubert/HubertForSequenceClassification
        sew-d/SEWDForSequenceClassification sew/SEWForSequenceClassification
        unispeech-sat/UniSpeechSatForSequenceClassification unispeech/UniSpeechForSequenceClassification
        wav2vec2-bert/Wav2Vec2BertForSequenceClassification
        wav2vec2-conformer/Wav2Vec2ConformerForSequenceClassification wav2vec2/Wav2Vec2ForSequenceClassification
        wavlm/WavLMForSequenceClassification whisper/WhisperForAudioClassification
    """
    ),
    "classification_head.dense.bias classification_head.dense.weight classification_head.out_proj.bias classification_head.out_proj.weight": (
        """
        bart/BartForSequenceClassification bigbird_pegasus/BigBirdPegasusForSequenceClassification
        mbart/MBartForSequenceClassification mt5/MT5ForSequenceClassification mvp/MvpForSequenceClassification
        plbart/PLBartForSequenceClassification t5/T5ForSequenceClassification umt5/UMT5ForSequenceClassification
    """
    ),
    "classifier.bias classifier.weight feature_extractor.bias feature_extractor.weight objective.weight projector.bias projector.weight tdnn.0.kernel.bias tdnn.0.kernel.weight tdnn.1.kernel.bias tdnn.1.kernel.weight tdnn.2.kernel.bias tdnn.2.kernel.weight tdnn.3.kernel.bias tdnn.3.kernel.weight tdnn.4.kernel.bias tdnn.4.kernel.weight": (
        """
        data2vec-audio/Data2VecAudioForXVector unispeech-sat/UniSpeechSatForXVector
        wav2vec2-bert/Wav2Vec2BertForXVector wav2vec2-conformer/Wav2Vec2ConformerForXVector
        wav2vec2/Wav2Vec2ForXVector wavlm/WavLMForXVector
    """
    ),
    "classifier.bias classifier.weight head.dense.weight head.norm.weight": (
        """
        modernbert/ModernBertForMultipleChoice modernbert/ModernBertForQuestionAnswering
        modernbert/ModernBertForSequenceClassification modernbert/ModernBertForTokenClassification
        modernvbert/ModernVBertForSequenceClassification modernvbert/ModernVBertForTokenClassification
    """
    ),
    "cls.predictions.bias cls.predictions.decoder.bias cls.predictions.decoder.weight cls.predictions.transform.LayerNorm.bias cls.predictions.transform.LayerNorm.weight cls.predictions.transform.dense.bias cls.predictions.transform.dense.weight cls.seq_relationship.bias cls.seq_relationship.weight": (
        """
        bert/BertForPreTraining big_bird/BigBirdForPreTraining ernie/ErnieForPreTraining fnet/FNetForPreTraining
        megatron-bert/MegatronBertForPreTraining visual_bert/VisualBertForPreTraining
    """
    ),
    "classifier.bias classifier.weight pre_classifier.bias pre_classifier.weight": (
        """
        distilbert/DistilBertForMultipleChoice distilbert/DistilBertForSequenceClassification mra/MraForMultipleChoice
        nystromformer/NystromformerForMultipleChoice yoso/YosoForMultipleChoice
    """
    ),
    "cls.seq_relationship.bias cls.seq_relationship.weight": (
        """
        bert/BertForNextSentencePrediction ernie/ErnieForNextSentencePrediction fnet/FNetForNextSentencePrediction
        megatron-bert/MegatronBertForNextSentencePrediction mobilebert/MobileBertForNextSentencePrediction
    """
    ),
    "logits_proj.bias logits_proj.weight sequence_summary.summary.bias sequence_summary.summary.weight": (
        """
        flaubert/FlaubertForMultipleChoice xlm/XLMForMultipleChoice xlnet/XLNetForMultipleChoice
        xlnet/XLNetForSequenceClassification
    """
    ),
    "score.out_proj.bias score.out_proj.weight": (
        """
        t5gemma/T5GemmaForSequenceClassification t5gemma/T5GemmaForTokenClassification
        t5gemma2/T5Gemma2ForSequenceClassification t5gemma2/T5Gemma2ForTokenClassification
    """
    ),
    "classifier.1.bias classifier.1.weight": (
        """
        bit/BitForImageClassification regnet/RegNetForImageClassification resnet/ResNetForImageClassification
    """
    ),
    "classifier.bias classifier.weight pooler.dense.bias pooler.dense.weight": (
        """
        deberta-v2/DebertaV2ForMultipleChoice deberta-v2/DebertaV2ForSequenceClassification
        deberta/DebertaForSequenceClassification
    """
    ),
    "generator_lm_head.bias generator_lm_head.weight generator_predictions.LayerNorm.bias generator_predictions.LayerNorm.weight generator_predictions.dense.bias generator_predictions.dense.weight": (
        """
        convbert/ConvBertForMaskedLM electra/ElectraForCausalLM electra/ElectraForMaskedLM
    """
    ),
    "proj_out.weight": (
        """
        moonshine/MoonshineForConditionalGeneration whisper/WhisperForCausalLM whisper/WhisperForConditionalGeneration
    """
    ),
    "classifier.linear_hidden.bias classifier.linear_hidden.weight classifier.linear_out.bias classifier.linear_out.weight": (
        """
        funnel/FunnelForMultipleChoice funnel/FunnelForSequenceClassification
    """
    ),
    "cls.predictions.LayerNorm.bias cls.predictions.LayerNorm.weight cls.predictions.decoder.bias cls.predictions.decoder.weight cls.predictions.dense.bias cls.predictions.dense.weight": (
        """
        rembert/RemBertForCausalLM rembert/RemBertForMaskedLM
    """
    ),
    "discriminator_predictions.dense.bias discriminator_predictions.dense.weight discriminator_predictions.dense_prediction.bias discriminator_predictions.dense_prediction.weight": (
        """
        electra/ElectraForPreTraining funnel/FunnelForPreTraining
    """
    ),
    "fc.bias fc.weight": (
        """
        hgnet_v2/HGNetV2ForImageClassification textnet/TextNetForImageClassification
    """
    ),
    "lm_head.decoder.bias lm_head.decoder.weight lm_head.dense.bias lm_head.dense.weight lm_head.layer_norm.bias lm_head.layer_norm.weight": (
        """
        esmc/EsmcForMaskedLM gte/GteForMaskedLM
    """
    ),
    "lm_head.out_proj.weight": (
        """
        t5gemma/T5GemmaForConditionalGeneration t5gemma2/T5Gemma2ForConditionalGeneration
    """
    ),
    "output_projection.weight": (
        """
        biogpt/BioGptForCausalLM trocr/TrOCRForCausalLM
    """
    ),
    "pred_layer.proj.bias pred_layer.proj.weight": (
        """
        flaubert/FlaubertWithLMHeadModel xlm/XLMWithLMHeadModel
    """
    ),
    "proj_out.bias proj_out.weight": (
        """
        canary/CanaryForConditionalGeneration cohere_asr/CohereAsrForConditionalGeneration
    """
    ),
    "project_hid.bias project_hid.weight project_q.bias project_q.weight quantizer.codevectors quantizer.weight_proj.bias quantizer.weight_proj.weight": (
        """
        wav2vec2-conformer/Wav2Vec2ConformerForPreTraining wav2vec2/Wav2Vec2ForPreTraining
    """
    ),
    "sequence_summary.summary.bias sequence_summary.summary.weight": (
        """
        flaubert/FlaubertForSequenceClassification xlm/XLMForSequenceClassification
    """
    ),
    "action_out_proj.bias action_out_proj.weight embed_action_time.action_in_proj.bias embed_action_time.action_in_proj.weight embed_action_time.action_time_mlp_in.bias embed_action_time.action_time_mlp_in.weight embed_action_time.action_time_mlp_out.bias embed_action_time.action_time_mlp_out.weight embed_action_time.state_proj.bias embed_action_time.state_proj.weight": (
        """
        pi0/PI0ForConditionalGeneration
    """
    ),
    "answer_head.logit_fc.0.bias answer_head.logit_fc.0.weight answer_head.logit_fc.2.bias answer_head.logit_fc.2.weight answer_head.logit_fc.3.bias answer_head.logit_fc.3.weight": (
        """
        lxmert/LxmertForQuestionAnswering
    """
    ),
    "audio_lm_head.weight": (
        """
        higgs_audio_v2/HiggsAudioV2ForConditionalGeneration
    """
    ),
    "classifier.0.bias classifier.0.weight classifier.1.bias classifier.1.weight classifier.3.bias classifier.3.weight": (
        """
        vilt/ViltForQuestionAnswering
    """
    ),
    "classifier.batch_norm.bias classifier.batch_norm.weight classifier.linear.bias classifier.linear.weight": (
        """
        levit/LevitForImageClassification
    """
    ),
    "classifier.batch_norm.bias classifier.batch_norm.weight classifier.linear.bias classifier.linear.weight classifier_distill.batch_norm.bias classifier_distill.batch_norm.weight classifier_distill.linear.bias classifier_distill.linear.weight": (
        """
        levit/LevitForImageClassificationWithTeacher
    """
    ),
    "classifier.bias classifier.weight dense.bias dense.weight": (
        """
        eurobert/EuroBertForSequenceClassification
    """
    ),
    "classifier.bias classifier.weight fc_norm.bias fc_norm.weight": (
        """
        videomae/VideoMAEForVideoClassification
    """
    ),
    "classifier.bias classifier.weight head.k_proj.bias head.k_proj.weight head.o_proj.bias head.o_proj.weight head.per_dim_scale head.pooling_attention_query head.q_proj.bias head.q_proj.weight head.v_proj.bias head.v_proj.weight head_layernorm.bias head_layernorm.weight": (
        """
        videoprism_vision_model/VideoPrismForVideoClassification
    """
    ),
    "classifier.bias classifier.weight layernorm.bias layernorm.weight": (
        """
        cvt/CvtForImageClassification
    """
    ),
    "classifier.bias classifier.weight norm.bias norm.weight": (
        """
        poolformer/PoolFormerForImageClassification
    """
    ),
    "classifier.bias classifier.weight sequence_summary.summary.bias sequence_summary.summary.weight": (
        """
        electra/ElectraForMultipleChoice
    """
    ),
    "classifier.dense.bias classifier.dense.weight classifier.layernorm.bias classifier.layernorm.weight": (
        """
        audio-spectrogram-transformer/ASTForAudioClassification
    """
    ),
    "classifier.dense.bias classifier.dense.weight classifier.out_proj.bias classifier.out_proj.weight silence_embeds": (
        """
        nemotron3_diarization/Nemotron3DiarizationForAudioFrameClassification
    """
    ),
    "classifier.weight": (
        """
        ctrl/CTRLForSequenceClassification
    """
    ),
    "classifier.weight head.dense.weight head.norm.weight": (
        """
        modernbert-decoder/ModernBertDecoderForSequenceClassification
    """
    ),
    "cls.predictions.bias cls.predictions.decoder.bias cls.predictions.decoder.weight cls.predictions.dense.weight cls.predictions.transform.LayerNorm.bias cls.predictions.transform.LayerNorm.weight cls.predictions.transform.dense.bias cls.predictions.transform.dense.weight": (
        """
        mobilebert/MobileBertForMaskedLM
    """
    ),
    "cls.predictions.bias cls.predictions.decoder.bias cls.predictions.decoder.weight cls.predictions.dense.weight cls.predictions.transform.LayerNorm.bias cls.predictions.transform.LayerNorm.weight cls.predictions.transform.dense.bias cls.predictions.transform.dense.weight cls.seq_relationship.bias cls.seq_relationship.weight": (
        """
        mobilebert/MobileBertForPreTraining
    """
    ),
    "cls.predictions.bias cls.predictions.decoder.bias cls.predictions.decoder.weight cls.predictions.transform.dense.bias cls.predictions.transform.dense.weight cls.predictions.transform.layer_norm.bias cls.predictions.transform.layer_norm.weight": (
        """
        nomic_bert/NomicBertForMaskedLM
    """
    ),
    "cls_classifier.bias cls_classifier.weight distillation_classifier.bias distillation_classifier.weight": (
        """
        deit/DeiTForImageClassificationWithTeacher
    """
    ),
    "column_output_bias column_output_weights output_bias output_weights": (
        """
        tapas/TapasForQuestionAnswering
    """
    ),
    "ctc_proj.bias ctc_proj.weight project_hid.bias project_hid.weight project_q.bias project_q.weight quantizer.codevectors quantizer.weight_proj.bias quantizer.weight_proj.weight": (
        """
        unispeech/UniSpeechForPreTraining
    """
    ),
    "decoder.bias decoder.weight head.dense.weight head.norm.weight": (
        """
        modernbert/ModernBertForMaskedLM
    """
    ),
    "decoder.bias decoder.weight lm_head.dense.weight lm_head.norm.weight": (
        """
        modernbert-decoder/ModernBertDecoderForCausalLM
    """
    ),
    "dist_head.bias dist_head.weight head.bias head.weight norm.bias norm.weight": (
        """
        swiftformer/SwiftFormerForImageClassification
    """
    ),
    "embed_out.weight": (
        """
        gpt_neox_japanese/GPTNeoXJapaneseForCausalLM
    """
    ),
    "embedding_decoder.bias": (
        """
        perceiver/PerceiverForMaskedLM
    """
    ),
    "entity_predictions.bias entity_predictions.decoder.weight entity_predictions.transform.LayerNorm.bias entity_predictions.transform.LayerNorm.weight entity_predictions.transform.dense.bias entity_predictions.transform.dense.weight lm_head.bias lm_head.decoder.bias lm_head.decoder.weight lm_head.dense.bias lm_head.dense.weight lm_head.layer_norm.bias lm_head.layer_norm.weight": (
        """
        luke/LukeForMaskedLM
    """
    ),
    "head.decoder.weight head.linear1.weight head.linear2.weight": (
        """
        ultrabert/UltrabertForMaskedLM
    """
    ),
    "head.linear.bias head.linear.weight": (
        """
        patchtst/PatchTSTForClassification
    """
    ),
    "head.weight": (
        """
        rwkv/RwkvForCausalLM
    """
    ),
    "label_embeddings_concat layer_norm_for_extract.bias layer_norm_for_extract.weight project_hid.bias project_hid.weight project_q.bias project_q.weight quantizer.codevectors quantizer.weight_proj.bias quantizer.weight_proj.weight speaker_proj.bias speaker_proj.weight": (
        """
        unispeech-sat/UniSpeechSatForPreTraining
    """
    ),
    "lm_head.bias lm_head.decoder.bias lm_head.decoder.weight": (
        """
        bert-generation/BertGenerationDecoder
    """
    ),
    "lm_head.bias lm_head.decoder.weight": (
        """
        reformer/ReformerForMaskedLM
    """
    ),
    "lm_head.bias lm_head.weight projection_head.dense.weight projection_head.norm.weight": (
        """
        modernvbert/ModernVBertForMaskedLM
    """
    ),
    "lm_head.weight projection_head.linear1.weight projection_head.linear2.weight": (
        """
        ultravbert/UltraVBertForMaskedLM
    """
    ),
    "lm_head.weight unembedding_projection.weight": (
        """
        neomme/NeoMMEForMaskedLM
    """
    ),
    "lm_head.weight word_timestamp_head.bias word_timestamp_head.weight": (
        """
        nemo_speechlm/Nemotron3_5TranscribeForConditionalGeneration
    """
    ),
    "lm_loss.bias lm_loss.weight": (
        """
        xlnet/XLNetLMHeadModel
    """
    ),
    "logits_dense.weight": (
        """
        dia/DiaForConditionalGeneration
    """
    ),
    "output.bias output.weight": (
        """
        git/GitForCausalLM
    """
    ),
    "predictions.LayerNorm.bias predictions.LayerNorm.weight predictions.bias predictions.decoder.bias predictions.decoder.weight predictions.dense.bias predictions.dense.weight": (
        """
        albert/AlbertForMaskedLM
    """
    ),
    "predictions.LayerNorm.bias predictions.LayerNorm.weight predictions.bias predictions.decoder.bias predictions.decoder.weight predictions.dense.bias predictions.dense.weight sop_classifier.classifier.bias sop_classifier.classifier.weight": (
        """
        albert/AlbertForPreTraining
    """
    ),
    "qa_classifier.intermediate.dense.bias qa_classifier.intermediate.dense.weight qa_classifier.output.LayerNorm.bias qa_classifier.output.LayerNorm.weight qa_classifier.output.dense.bias qa_classifier.output.dense.weight qa_classifier.qa_outputs.bias qa_classifier.qa_outputs.weight": (
        """
        big_bird/BigBirdForQuestionAnswering
    """
    ),
    "qa_outputs.dense.bias qa_outputs.dense.weight qa_outputs.out_proj.bias qa_outputs.out_proj.weight": (
        """
        layoutlmv3/LayoutLMv3ForQuestionAnswering
    """
    ),
    "vocab_layer_norm.bias vocab_layer_norm.weight vocab_projector.bias vocab_projector.weight vocab_transform.bias vocab_transform.weight": (
        """
        distilbert/DistilBertForMaskedLM
    """
    ),
}
