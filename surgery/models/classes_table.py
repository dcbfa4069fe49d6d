"""The classes beside those of PEFT's tasks, and bare models of image and speech: where each holds its body. A test
compares it with the classes.

Generated from transformers 5.23.0: the classes of `heads_table.py`, built on the meta device. A class whose body
differs from its type's bare model in more than whole parts that it leaves out is not here.
"""

from __future__ import annotations

from collections.abc import Mapping

# The prefix under which other classes of the type hold the body -> the bare models, each after its model type.
BODIES: Mapping[str, str] = {
    "audio_spectrogram_transformer": """
        audio-spectrogram-transformer/ASTModel
    """,
    "beit": """
        beit/BeitModel
    """,
    "bert": """
        bert-generation/BertGenerationEncoder
    """,
    "bit": """
        bit/BitModel
    """,
    "clip": """
        clip/CLIPModel
    """,
    "convnext": """
        convnext/ConvNextModel
    """,
    "convnextv2": """
        convnextv2/ConvNextV2Model
    """,
    "cvt": """
        cvt/CvtModel
    """,
    "data2vec_audio": """
        data2vec-audio/Data2VecAudioModel
    """,
    "deit": """
        deit/DeiTModel
    """,
    "dinov2": """
        dinov2/Dinov2Model
    """,
    "dinov2_with_registers": """
        dinov2_with_registers/Dinov2WithRegistersModel
    """,
    "donut": """
        donut-swin/DonutSwinModel
    """,
    "efficientnet": """
        efficientnet/EfficientNetModel
    """,
    "focalnet": """
        focalnet/FocalNetModel
    """,
    "hgnetv2": """
        hgnet_v2/HGNetV2Backbone
    """,
    "hiera": """
        hiera/HieraModel
    """,
    "hubert": """
        hubert/HubertModel
    """,
    "ijepa": """
        ijepa/IJepaModel
    """,
    "metaclip_2": """
        metaclip_2/MetaClip2Model
    """,
    "mobilenet_v1": """
        mobilenet_v1/MobileNetV1Model
    """,
    "mobilenet_v2": """
        mobilenet_v2/MobileNetV2Model
    """,
    "mobilevit": """
        mobilevit/MobileViTModel
    """,
    "mobilevitv2": """
        mobilevitv2/MobileViTV2Model
    """,
    "model": """
        nemotron3_diarization/Nemotron3DiarizationModel patchtst/PatchTSTModel
    """,
    "poolformer": """
        poolformer/PoolFormerModel
    """,
    "pvt": """
        pvt/PvtModel
    """,
    "pvt_v2": """
        pvt_v2/PvtV2Model
    """,
    "regnet": """
        regnet/RegNetModel
    """,
    "resnet": """
        resnet/ResNetModel
    """,
    "segformer": """
        segformer/SegformerModel
    """,
    "sew": """
        sew/SEWModel
    """,
    "sew_d": """
        sew-d/SEWDModel
    """,
    "siglip": """
        siglip/SiglipModel
    """,
    "siglip2": """
        siglip2/Siglip2Model
    """,
    "swin": """
        swin/SwinModel
    """,
    "swinv2": """
        swinv2/Swinv2Model
    """,
    "textnet": """
        textnet/TextNetModel
    """,
    "timesformer": """
        timesformer/TimesformerModel
    """,
    "transformer": """
        imagegpt/ImageGPTModel
    """,
    "videomae": """
        videomae/VideoMAEModel
    """,
    "vilt": """
        vilt/ViltModel
    """,
    "vision_model": """
        videoprism_vision_model/VideoPrismVisionModel
    """,
    "vit": """
        vit/ViTModel vit_msn/ViTMSNModel
    """,
    "vivit": """
        vivit/VivitModel
    """,
    "wav2vec2_bert": """
        wav2vec2-bert/Wav2Vec2BertModel
    """,
    "wavlm": """
        wavlm/WavLMModel
    """,
}

# (prefix of the body, parts of it that the class leaves out, the tensor with a row for each label) -> the classes.
CLASSES: Mapping[tuple[str, str, str], str] = {
    ("", "", ""): """
        longt5/LongT5ForConditionalGeneration mt5/MT5ForConditionalGeneration
        switch_transformers/SwitchTransformersForConditionalGeneration t5/T5ForConditionalGeneration
        udop/UdopForConditionalGeneration umt5/UMT5ForConditionalGeneration
    """,
    ("", "", "fc.weight"): """
        hgnet_v2/HGNetV2ForImageClassification
    """,
    ("", "decoder", "classifier.weight"): """
        whisper/WhisperForAudioClassification
    """,
    ("", "logit_bias,logit_scale,text_model", "classifier.weight"): """
        siglip/SiglipForImageClassification siglip2/Siglip2ForImageClassification
    """,
    ("", "logit_scale,text_model,text_projection,visual_projection", "classifier.weight"): """
        clip/CLIPForImageClassification metaclip_2/MetaClip2ForImageClassification
    """,
    ("albert", "", ""): """
        albert/AlbertForMultipleChoice
    """,
    ("albert", "", "sop_classifier.classifier.weight"): """
        albert/AlbertForPreTraining
    """,
    ("albert", "pooler", ""): """
        albert/AlbertForMaskedLM
    """,
    ("audio_spectrogram_transformer", "", "classifier.dense.weight"): """
        audio-spectrogram-transformer/ASTForAudioClassification
    """,
    ("backbone", "", ""): """
        falcon_mamba/FalconMambaForCausalLM mamba/MambaForCausalLM mamba2/Mamba2ForCausalLM
        xlstm/xLSTMForCausalLM
    """,
    ("beit", "", "classifier.weight"): """
        beit/BeitForImageClassification
    """,
    ("bert", "", ""): """
        bert-generation/BertGenerationDecoder bert/BertForMultipleChoice bert/BertForNextSentencePrediction
        bert/BertForPreTraining big_bird/BigBirdForCausalLM big_bird/BigBirdForMaskedLM
        big_bird/BigBirdForMultipleChoice big_bird/BigBirdForPreTraining
        megatron-bert/MegatronBertForMultipleChoice megatron-bert/MegatronBertForNextSentencePrediction
        megatron-bert/MegatronBertForPreTraining
    """,
    ("bert", "pooler", ""): """
        bert/BertForMaskedLM bert/BertLMHeadModel megatron-bert/MegatronBertForCausalLM
        megatron-bert/MegatronBertForMaskedLM
    """,
    ("biogpt", "", ""): """
        biogpt/BioGptForCausalLM
    """,
    ("bit", "", "classifier.1.weight"): """
        bit/BitForImageClassification
    """,
    ("canine", "", ""): """
        canine/CanineForMultipleChoice
    """,
    ("convbert", "", ""): """
        convbert/ConvBertForMaskedLM convbert/ConvBertForMultipleChoice
    """,
    ("convnext", "", "classifier.weight"): """
        convnext/ConvNextForImageClassification
    """,
    ("convnextv2", "", "classifier.weight"): """
        convnextv2/ConvNextV2ForImageClassification
    """,
    ("cpmant", "", ""): """
        cpmant/CpmAntForCausalLM
    """,
    ("cvt", "", "classifier.weight"): """
        cvt/CvtForImageClassification
    """,
    ("data2vec_audio", "", ""): """
        data2vec-audio/Data2VecAudioForCTC
    """,
    ("data2vec_audio", "", "classifier.weight"): """
        data2vec-audio/Data2VecAudioForAudioFrameClassification
        data2vec-audio/Data2VecAudioForSequenceClassification
    """,
    ("data2vec_audio", "", "objective.weight"): """
        data2vec-audio/Data2VecAudioForXVector
    """,
    ("data2vec_text", "", ""): """
        data2vec-text/Data2VecTextForMultipleChoice
    """,
    ("data2vec_text", "pooler", ""): """
        data2vec-text/Data2VecTextForCausalLM data2vec-text/Data2VecTextForMaskedLM
    """,
    ("deberta", "", ""): """
        deberta-v2/DebertaV2ForMaskedLM deberta-v2/DebertaV2ForMultipleChoice deberta/DebertaForMaskedLM
    """,
    ("deit", "pooler", "classifier.weight"): """
        deit/DeiTForImageClassification
    """,
    ("deit", "pooler", "cls_classifier.weight"): """
        deit/DeiTForImageClassificationWithTeacher
    """,
    ("dinov2", "", "classifier.weight"): """
        dinov2/Dinov2ForImageClassification
    """,
    ("dinov2_with_registers", "", "classifier.weight"): """
        dinov2_with_registers/Dinov2WithRegistersForImageClassification
    """,
    ("distilbert", "", ""): """
        distilbert/DistilBertForMaskedLM distilbert/DistilBertForMultipleChoice
    """,
    ("donut", "", "classifier.weight"): """
        donut-swin/DonutSwinForImageClassification
    """,
    ("efficientnet", "", "classifier.weight"): """
        efficientnet/EfficientNetForImageClassification
    """,
    ("electra", "", ""): """
        electra/ElectraForCausalLM electra/ElectraForMaskedLM electra/ElectraForMultipleChoice
        electra/ElectraForPreTraining
    """,
    ("ernie", "", ""): """
        ernie/ErnieForMultipleChoice ernie/ErnieForNextSentencePrediction ernie/ErnieForPreTraining
    """,
    ("ernie", "pooler", ""): """
        ernie/ErnieForCausalLM ernie/ErnieForMaskedLM
    """,
    ("esmc", "", ""): """
        esmc/EsmcForMaskedLM
    """,
    ("fnet", "", ""): """
        fnet/FNetForMaskedLM fnet/FNetForMultipleChoice fnet/FNetForNextSentencePrediction
        fnet/FNetForPreTraining
    """,
    ("focalnet", "", "classifier.weight"): """
        focalnet/FocalNetForImageClassification
    """,
    ("funnel", "", ""): """
        funnel/FunnelForMaskedLM funnel/FunnelForPreTraining
    """,
    ("funnel", "decoder", ""): """
        funnel/FunnelForMultipleChoice
    """,
    ("git", "", ""): """
        git/GitForCausalLM
    """,
    ("gpt_neox", "", ""): """
        gpt_neox/GPTNeoXForCausalLM
    """,
    ("gpt_neox_japanese", "", ""): """
        gpt_neox_japanese/GPTNeoXJapaneseForCausalLM
    """,
    ("gte", "", ""): """
        gte/GteForMaskedLM
    """,
    ("hiera", "", "classifier.weight"): """
        hiera/HieraForImageClassification
    """,
    ("hubert", "", ""): """
        hubert/HubertForCTC
    """,
    ("hubert", "", "classifier.weight"): """
        hubert/HubertForSequenceClassification
    """,
    ("ibert", "", ""): """
        ibert/IBertForMultipleChoice
    """,
    ("ibert", "pooler", ""): """
        ibert/IBertForMaskedLM
    """,
    ("ijepa", "", "classifier.weight"): """
        ijepa/IJepaForImageClassification
    """,
    ("layoutlm", "", ""): """
        layoutlm/LayoutLMForMaskedLM
    """,
    ("layoutlm", "", "qa_outputs.weight"): """
        layoutlm/LayoutLMForQuestionAnswering
    """,
    ("led", "", ""): """
        led/LEDForConditionalGeneration
    """,
    ("longformer", "", ""): """
        longformer/LongformerForMultipleChoice
    """,
    ("longformer", "pooler", ""): """
        longformer/LongformerForMaskedLM
    """,
    ("luke", "", ""): """
        luke/LukeForMaskedLM luke/LukeForMultipleChoice
    """,
    ("mobilebert", "", ""): """
        mobilebert/MobileBertForMultipleChoice mobilebert/MobileBertForNextSentencePrediction
        mobilebert/MobileBertForPreTraining
    """,
    ("mobilebert", "pooler", ""): """
        mobilebert/MobileBertForMaskedLM
    """,
    ("mobilenet_v1", "", "classifier.weight"): """
        mobilenet_v1/MobileNetV1ForImageClassification
    """,
    ("mobilenet_v2", "", "classifier.weight"): """
        mobilenet_v2/MobileNetV2ForImageClassification
    """,
    ("mobilevit", "", "classifier.weight"): """
        mobilevit/MobileViTForImageClassification
    """,
    ("mobilevitv2", "", "classifier.weight"): """
        mobilevitv2/MobileViTV2ForImageClassification
    """,
    ("model", "", ""): """
        afmoe/AfmoeForCausalLM apertus/ApertusForCausalLM arcee/ArceeForCausalLM
        aria/AriaForConditionalGeneration aria_text/AriaTextForCausalLM
        audioflamingo3/AudioFlamingo3ForConditionalGeneration axk1/AXK1ForCausalLM axk2/AXK2ForCausalLM
        bailing_hybrid/BailingHybridForCausalLM bamba/BambaForCausalLM bart/BartForConditionalGeneration
        beam/BeamForCausalLM bigbird_pegasus/BigBirdPegasusForConditionalGeneration bitnet/BitNetForCausalLM
        blenderbot-small/BlenderbotSmallForConditionalGeneration blenderbot/BlenderbotForConditionalGeneration
        blt/BltForCausalLM canary/CanaryForConditionalGeneration cohere/CohereForCausalLM
        cohere2/Cohere2ForCausalLM cohere2_moe/Cohere2MoeForCausalLM
        cohere2_vision/Cohere2VisionForConditionalGeneration cohere_asr/CohereAsrForConditionalGeneration
        cosmos3_edge/Cosmos3EdgeForConditionalGeneration cosmos3_omni/Cosmos3OmniForConditionalGeneration
        cwm/CwmForCausalLM deepseek_v2/DeepseekV2ForCausalLM deepseek_v3/DeepseekV3ForCausalLM
        deepseek_v32/DeepseekV32ForCausalLM deepseek_v4/DeepseekV4ForCausalLM
        deepseek_vl/DeepseekVLForConditionalGeneration
        deepseek_vl_hybrid/DeepseekVLHybridForConditionalGeneration dia/DiaForConditionalGeneration
        diffllama/DiffLlamaForCausalLM doge/DogeForCausalLM dots3_note/Dots3NoteForConditionalGeneration
        dots3_note_text/Dots3NoteForCausalLM ernie4_5/Ernie4_5ForCausalLM ernie4_5_moe/Ernie4_5_MoeForCausalLM
        ernie4_5_vl_moe/Ernie4_5_VLMoeForConditionalGeneration eurobert/EuroBertForMaskedLM
        exaone4/Exaone4ForCausalLM exaone4_5/Exaone4_5_ForConditionalGeneration exaone_moe/ExaoneMoeForCausalLM
        falcon_h1/FalconH1ForCausalLM flex_olmo/FlexOlmoForCausalLM flint/FlintForCausalLM
        florence2/Florence2ForConditionalGeneration fun_asr_nano/FunAsrNanoForConditionalGeneration
        fuyu/FuyuForCausalLM gemma/GemmaForCausalLM gemma2/Gemma2ForCausalLM
        gemma3/Gemma3ForConditionalGeneration gemma3_text/Gemma3ForCausalLM gemma3n_text/Gemma3nForCausalLM
        gemma4/Gemma4ForConditionalGeneration gemma4_text/Gemma4ForCausalLM
        gemma4_unified/Gemma4UnifiedForConditionalGeneration gemma4_unified_text/Gemma4UnifiedForCausalLM
        glm/GlmForCausalLM glm4/Glm4ForCausalLM glm46v/Glm46VForConditionalGeneration
        glm4_moe/Glm4MoeForCausalLM glm4_moe_lite/Glm4MoeLiteForCausalLM glm4v/Glm4vForConditionalGeneration
        glm4v_moe/Glm4vMoeForConditionalGeneration glm5_next/Glm5NextForConditionalGeneration
        glm_moe_dsa/GlmMoeDsaForCausalLM glm_ocr/GlmOcrForConditionalGeneration
        glmasr/GlmAsrForConditionalGeneration glmga/Glm46VForConditionalGeneration
        got_ocr2/GotOcr2ForConditionalGeneration gpt_oss/GptOssForCausalLM granite/GraniteForCausalLM
        granite_docling/GraniteDoclingForConditionalGeneration
        granite_speech/GraniteSpeechForConditionalGeneration
        granite_speech_plus/GraniteSpeechPlusForConditionalGeneration granite_swa/GraniteSWAForCausalLM
        granitemoe/GraniteMoeForCausalLM granitemoe_swa/GraniteMoeSWAForCausalLM
        granitemoehybrid/GraniteMoeHybridForCausalLM granitemoeshared/GraniteMoeSharedForCausalLM
        helium/HeliumForCausalLM hrm_text/HrmTextForCausalLM hy_v3/HYV3ForCausalLM hy_v4/HYV4ForCausalLM
        hyperclovax/HyperCLOVAXForCausalLM hyperclovax_vision_v2/HyperCLOVAXVisionV2ForConditionalGeneration
        idefics2/Idefics2ForConditionalGeneration idefics3/Idefics3ForConditionalGeneration
        inkling2/Inkling2ForConditionalGeneration inkling2_text/Inkling2ForCausalLM
        inkling_mm_model/InklingForConditionalGeneration inkling_text/InklingForCausalLM
        internlm3/LlamaForCausalLM internvl/InternVLForConditionalGeneration iquestcoder/LlamaForCausalLM
        jais2/Jais2ForCausalLM jamba/JambaForCausalLM janus/JanusForConditionalGeneration
        jetmoe/JetMoeForCausalLM kimi_k25/Kimi_K25ForConditionalGeneration kimi_linear/KimiLinearForCausalLM
        kolibri1/Kolibri1ForCausalLM laguna/LagunaForCausalLM lfm2/Lfm2ForCausalLM
        lfm2_vl/Lfm2VlForConditionalGeneration lfm3/Lfm3ForCausalLM lfm3_vl/Lfm3VlForConditionalGeneration
        lighton_ocr/LightOnOcrForConditionalGeneration llama/LlamaForCausalLM
        llava/LlavaForConditionalGeneration llava_next/LlavaNextForConditionalGeneration
        llava_next_video/LlavaNextVideoForConditionalGeneration
        llava_onevision/LlavaOnevisionForConditionalGeneration longcat_flash/LongcatFlashForCausalLM
        m2m_100/M2M100ForConditionalGeneration mbart/MBartForConditionalGeneration mellum/MellumForCausalLM
        mimo_v2_flash/MiMoV2FlashForCausalLM minicpm3/MiniCPM3ForCausalLM
        minicpm_ocr/MiniCPMOcrForConditionalGeneration minicpmv4_6/MiniCPMV4_6ForConditionalGeneration
        minicpmv4_7/MiniCPMV4_7ForConditionalGeneration minimax/MiniMaxForCausalLM
        minimax_m2/MiniMaxM2ForCausalLM minimax_m3_vl/MiniMaxM3SparseForConditionalGeneration
        minimax_m3_vl_text/MiniMaxM3VLForCausalLM ministral3/Ministral3ForCausalLM mistral/MistralForCausalLM
        mistral3/Mistral3ForConditionalGeneration mistral4/Mistral4ForCausalLM
        mistral_large4/MistralLarge4ForConditionalGeneration mixtral/MixtralForCausalLM
        mllama/MllamaForConditionalGeneration modernbert-decoder/ModernBertDecoderForCausalLM
        modernbert/ModernBertForMaskedLM modernbert/ModernBertForMultipleChoice
        modernvbert/ModernVBertForMaskedLM molmo2/Molmo2ForConditionalGeneration
        moonshine/MoonshineForConditionalGeneration moshi/MoshiForCausalLM
        moss_transcribe_diarize/MossTranscribeDiarizeForConditionalGeneration
        muse_glimmer/MuseGlimmerForConditionalGeneration muse_spark/MuseSparkForConditionalGeneration
        musicflamingo/MusicFlamingoForConditionalGeneration mvp/MvpForConditionalGeneration
        nanochat/NanoChatForCausalLM nemo_speechlm/Nemotron3_5TranscribeForConditionalGeneration
        nemotron3_diarization/Nemotron3DiarizationForAudioFrameClassification nemotron_h/NemotronHForCausalLM
        neomme/NeoMMEForMaskedLM nllb-moe/NllbMoeForConditionalGeneration olmo/OlmoForCausalLM
        olmo2/Olmo2ForCausalLM olmo3/Olmo3ForCausalLM olmo_hybrid/OlmoHybridForCausalLM olmoe/OlmoeForCausalLM
        opt/OPTForCausalLM ovis2/Ovis2ForConditionalGeneration paddleocr_vl/PaddleOCRVLForConditionalGeneration
        paligemma/PaliGemmaForConditionalGeneration patchtst/PatchTSTForClassification
        pegasus/PegasusForConditionalGeneration pegasus_x/PegasusXForConditionalGeneration
        persimmon/PersimmonForCausalLM phi/PhiForCausalLM phi3/Phi3ForCausalLM
        phi4_multimodal/Phi4MultimodalForCausalLM phimoe/PhimoeForCausalLM pi0/PI0ForConditionalGeneration
        plbart/PLBartForConditionalGeneration qianfan_ocr/QianfanOCRForConditionalGeneration
        qwen2/Qwen2ForCausalLM qwen2_5_omni_thinker/Qwen2_5OmniThinkerForConditionalGeneration
        qwen2_5_vl/Qwen2_5_VLForConditionalGeneration qwen2_audio/Qwen2AudioForConditionalGeneration
        qwen2_moe/Qwen2MoeForCausalLM qwen2_vl/Qwen2VLForConditionalGeneration qwen3/Qwen3ForCausalLM
        qwen3_5/Qwen3_5ForConditionalGeneration qwen3_5_moe/Qwen3_5MoeForConditionalGeneration
        qwen3_5_moe_text/Qwen3_5MoeForCausalLM qwen3_5_text/Qwen3_5ForCausalLM
        qwen3_asr/Qwen3ASRForConditionalGeneration qwen3_moe/Qwen3MoeForCausalLM qwen3_next/Qwen3NextForCausalLM
        qwen3_omni_moe_thinker/Qwen3OmniMoeThinkerForConditionalGeneration
        qwen3_vl/Qwen3VLForConditionalGeneration qwen3_vl_moe/Qwen3VLMoeForConditionalGeneration
        recurrent_gemma/RecurrentGemmaForCausalLM seed_oss/SeedOssForCausalLM smollm3/SmolLM3ForCausalLM
        smolvlm/SmolVLMForConditionalGeneration solar_open/SolarOpenForCausalLM
        speech_to_text/Speech2TextForConditionalGeneration stablelm/StableLmForCausalLM
        starcoder2/Starcoder2ForCausalLM step3p7/Step3p7ForConditionalGeneration
        t5gemma/T5GemmaForConditionalGeneration t5gemma2/T5Gemma2ForConditionalGeneration
        ultrabert/UltrabertForMaskedLM ultravbert/UltraVBertForMaskedLM
        unlimited_ocr/UnlimitedOcrForConditionalGeneration vaultgemma/VaultGemmaForCausalLM
        vibevoice_asr/VibeVoiceAsrForConditionalGeneration video_llama_3/VideoLlama3ForConditionalGeneration
        video_llava/VideoLlavaForConditionalGeneration vipllava/VipLlavaForConditionalGeneration
        voxtral/VoxtralForConditionalGeneration voxtral_realtime/VoxtralRealtimeForConditionalGeneration
        whisper/WhisperForConditionalGeneration xglm/XGLMForCausalLM youtu/YoutuForCausalLM
        zamba/ZambaForCausalLM zamba2/Zamba2ForCausalLM zaya/ZayaForCausalLM
    """,
    ("model", "encoder", ""): """
        whisper/WhisperForCausalLM
    """,
    ("model", "encoder,shared", ""): """
        bart/BartForCausalLM bigbird_pegasus/BigBirdPegasusForCausalLM
        blenderbot-small/BlenderbotSmallForCausalLM blenderbot/BlenderbotForCausalLM marian/MarianForCausalLM
        mbart/MBartForCausalLM mvp/MvpForCausalLM pegasus/PegasusForCausalLM plbart/PLBartForCausalLM
    """,
    ("mpnet", "", ""): """
        mpnet/MPNetForMultipleChoice
    """,
    ("mpnet", "pooler", ""): """
        mpnet/MPNetForMaskedLM
    """,
    ("mra", "", ""): """
        mra/MraForMaskedLM mra/MraForMultipleChoice
    """,
    ("nomic_bert", "", ""): """
        nomic_bert/NomicBertForMaskedLM
    """,
    ("nystromformer", "", ""): """
        nystromformer/NystromformerForMaskedLM nystromformer/NystromformerForMultipleChoice
    """,
    ("poolformer", "", "classifier.weight"): """
        poolformer/PoolFormerForImageClassification
    """,
    ("prophetnet", "", ""): """
        prophetnet/ProphetNetForConditionalGeneration
    """,
    ("prophetnet", "encoder", ""): """
        prophetnet/ProphetNetForCausalLM
    """,
    ("pvt", "", "classifier.weight"): """
        pvt/PvtForImageClassification
    """,
    ("pvt_v2", "", "classifier.weight"): """
        pvt_v2/PvtV2ForImageClassification
    """,
    ("reformer", "", ""): """
        reformer/ReformerForMaskedLM
    """,
    ("regnet", "", "classifier.1.weight"): """
        regnet/RegNetForImageClassification
    """,
    ("rembert", "", ""): """
        rembert/RemBertForMultipleChoice
    """,
    ("rembert", "pooler", ""): """
        rembert/RemBertForCausalLM rembert/RemBertForMaskedLM
    """,
    ("resnet", "", "classifier.1.weight"): """
        resnet/ResNetForImageClassification
    """,
    ("roberta", "", ""): """
        camembert/CamembertForMultipleChoice roberta/RobertaForMultipleChoice
        xlm-roberta-xl/XLMRobertaXLForMultipleChoice xlm-roberta/XLMRobertaForMultipleChoice
        xmod/XmodForMultipleChoice
    """,
    ("roberta", "pooler", ""): """
        camembert/CamembertForCausalLM camembert/CamembertForMaskedLM
        jina_embeddings_v3/JinaEmbeddingsV3ForMaskedLM roberta/RobertaForCausalLM roberta/RobertaForMaskedLM
        xlm-roberta-xl/XLMRobertaXLForCausalLM xlm-roberta-xl/XLMRobertaXLForMaskedLM
        xlm-roberta/XLMRobertaForCausalLM xlm-roberta/XLMRobertaForMaskedLM xmod/XmodForCausalLM
        xmod/XmodForMaskedLM
    """,
    ("roberta_prelayernorm", "", ""): """
        roberta-prelayernorm/RobertaPreLayerNormForMultipleChoice
    """,
    ("roberta_prelayernorm", "pooler", ""): """
        roberta-prelayernorm/RobertaPreLayerNormForCausalLM roberta-prelayernorm/RobertaPreLayerNormForMaskedLM
    """,
    ("roc_bert", "", ""): """
        roc_bert/RoCBertForMultipleChoice roc_bert/RoCBertForPreTraining
    """,
    ("roc_bert", "pooler", ""): """
        roc_bert/RoCBertForCausalLM roc_bert/RoCBertForMaskedLM
    """,
    ("roformer", "", ""): """
        roformer/RoFormerForCausalLM roformer/RoFormerForMaskedLM roformer/RoFormerForMultipleChoice
    """,
    ("rwkv", "", ""): """
        rwkv/RwkvForCausalLM
    """,
    ("segformer", "", "classifier.weight"): """
        segformer/SegformerForImageClassification
    """,
    ("sew", "", ""): """
        sew/SEWForCTC
    """,
    ("sew", "", "classifier.weight"): """
        sew/SEWForSequenceClassification
    """,
    ("sew_d", "", ""): """
        sew-d/SEWDForCTC
    """,
    ("sew_d", "", "classifier.weight"): """
        sew-d/SEWDForSequenceClassification
    """,
    ("swin", "", "classifier.weight"): """
        swin/SwinForImageClassification
    """,
    ("swinv2", "", "classifier.weight"): """
        swinv2/Swinv2ForImageClassification
    """,
    ("tapas", "", ""): """
        tapas/TapasForQuestionAnswering
    """,
    ("tapas", "pooler", ""): """
        tapas/TapasForMaskedLM
    """,
    ("textnet", "", "fc.weight"): """
        textnet/TextNetForImageClassification
    """,
    ("timesformer", "", "classifier.weight"): """
        timesformer/TimesformerForVideoClassification
    """,
    ("transformer", "", ""): """
        bloom/BloomForCausalLM codegen/CodeGenForCausalLM ctrl/CTRLLMHeadModel falcon/FalconForCausalLM
        flaubert/FlaubertForMultipleChoice flaubert/FlaubertWithLMHeadModel gpt-sw3/GPT2LMHeadModel
        gpt2/GPT2LMHeadModel gpt_bigcode/GPTBigCodeForCausalLM gpt_neo/GPTNeoForCausalLM gptj/GPTJForCausalLM
        mpt/MptForCausalLM openai-gpt/OpenAIGPTLMHeadModel squeezebert/SqueezeBertForMaskedLM
        squeezebert/SqueezeBertForMultipleChoice xlm/XLMForMultipleChoice xlm/XLMWithLMHeadModel
        xlnet/XLNetForMultipleChoice xlnet/XLNetLMHeadModel
    """,
    ("transformer", "", "score.weight"): """
        imagegpt/ImageGPTForImageClassification
    """,
    ("unispeech", "", ""): """
        unispeech/UniSpeechForCTC unispeech/UniSpeechForPreTraining
    """,
    ("unispeech", "", "classifier.weight"): """
        unispeech/UniSpeechForSequenceClassification
    """,
    ("unispeech_sat", "", ""): """
        unispeech-sat/UniSpeechSatForCTC unispeech-sat/UniSpeechSatForPreTraining
    """,
    ("unispeech_sat", "", "classifier.weight"): """
        unispeech-sat/UniSpeechSatForAudioFrameClassification
        unispeech-sat/UniSpeechSatForSequenceClassification
    """,
    ("unispeech_sat", "", "objective.weight"): """
        unispeech-sat/UniSpeechSatForXVector
    """,
    ("videomae", "", "classifier.weight"): """
        videomae/VideoMAEForVideoClassification
    """,
    ("vilt", "", "classifier.3.weight"): """
        vilt/ViltForQuestionAnswering
    """,
    ("vision_model", "", "classifier.weight"): """
        videoprism_vision_model/VideoPrismForVideoClassification
    """,
    ("visual_bert", "", ""): """
        visual_bert/VisualBertForPreTraining
    """,
    ("vit", "", "classifier.weight"): """
        vit_msn/ViTMSNForImageClassification
    """,
    ("vit", "pooler", "classifier.weight"): """
        vit/ViTForImageClassification
    """,
    ("vivit", "pooler", "classifier.weight"): """
        vivit/VivitForVideoClassification
    """,
    ("wav2vec2", "", ""): """
        wav2vec2/Wav2Vec2ForCTC wav2vec2/Wav2Vec2ForPreTraining
    """,
    ("wav2vec2", "", "classifier.weight"): """
        wav2vec2/Wav2Vec2ForAudioFrameClassification wav2vec2/Wav2Vec2ForSequenceClassification
    """,
    ("wav2vec2", "", "objective.weight"): """
        wav2vec2/Wav2Vec2ForXVector
    """,
    ("wav2vec2_bert", "", "classifier.weight"): """
        wav2vec2-bert/Wav2Vec2BertForAudioFrameClassification
        wav2vec2-bert/Wav2Vec2BertForSequenceClassification
    """,
    ("wav2vec2_bert", "", "objective.weight"): """
        wav2vec2-bert/Wav2Vec2BertForXVector
    """,
    ("wav2vec2_conformer", "", ""): """
        wav2vec2-conformer/Wav2Vec2ConformerForPreTraining
    """,
    ("wav2vec2_conformer", "", "classifier.weight"): """
        wav2vec2-conformer/Wav2Vec2ConformerForAudioFrameClassification
        wav2vec2-conformer/Wav2Vec2ConformerForSequenceClassification
    """,
    ("wav2vec2_conformer", "", "objective.weight"): """
        wav2vec2-conformer/Wav2Vec2ConformerForXVector
    """,
    ("wavlm", "", ""): """
        wavlm/WavLMForCTC
    """,
    ("wavlm", "", "classifier.weight"): """
        wavlm/WavLMForAudioFrameClassification wavlm/WavLMForSequenceClassification
    """,
    ("wavlm", "", "objective.weight"): """
        wavlm/WavLMForXVector
    """,
    ("yoso", "", ""): """
        yoso/YosoForMaskedLM yoso/YosoForMultipleChoice
    """,
}
