"""What transformers' configuration classes know that a config.json may leave out. Generated: do not
edit.

Made by ``python -m tests.support.known_models`` from transformers 5.23.0; a test compares it with the one
installed.
"""
# ruff: noqa: E501

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KnownModel:
    """One model type: field names of its own (`aliases`), and the values of fields that are left out
    (`defaults`)."""

    text_model_type: str | None
    """Model type of a wrapper's language model."""
    rotary: bool
    stateful: bool
    rope: Mapping[str, Any]
    """Rotary embedding (as `rope_parameters`) where it isn't the plain one."""
    layer_kinds: tuple[str, ...]
    """Kinds of layers where they are not all full attention."""
    aliases: Mapping[str, str]
    defaults: Mapping[str, Any]


@functools.cache
def known_model(model_type: str) -> KnownModel | None:
    """What is known of a model type, or None."""
    line = _lines().get(model_type)
    if line is None:
        return None
    found = json.loads(line)
    return KnownModel(
        text_model_type=found.get("text"),
        rotary=found.get("rotary", False),
        stateful=found.get("stateful", False),
        rope=found.get("rope", {}),
        layer_kinds=tuple(found.get("kinds", ())),
        aliases=found.get("aliases", {}),
        defaults=found.get("defaults", {}),
    )


@functools.cache
def known_architectures() -> frozenset[str]:
    """Names of model classes that transformers or vLLM knows for language models."""
    return frozenset(_ARCHITECTURES.split())


@functools.cache
def _lines() -> dict[str, str]:
    return dict(line.split(" ", 1) for line in _MODELS.strip().splitlines())


_ARCHITECTURES = """
ASTModel AXK1ForCausalLM AXK1ForSequenceClassification AXK1ForTokenClassification AXK1Model AXK2ForCausalLM
AXK2ForSequenceClassification AXK2ForTokenClassification AXK2Model AfmoeForCausalLM AfmoeModel Aimv2Model
Aimv2VisionModel AlbertForMaskedLM AlbertForSequenceClassification AlbertForTokenClassification AlbertModel
AlignModel AltCLIPModel ApertusForCausalLM ApertusForTokenClassification ApertusModel ArceeForCausalLM
ArceeForSequenceClassification ArceeForTokenClassification ArceeModel AriaForConditionalGeneration AriaModel
AriaTextForCausalLM AriaTextModel AudioFlamingo3Encoder AudioFlamingo3ForConditionalGeneration
AudioFlamingo3Model AutoformerModel AyaVisionForConditionalGeneration AyaVisionModel BailingHybridForCausalLM
BailingHybridModel BambaForCausalLM BambaModel BarkModel BartForCausalLM BartForConditionalGeneration
BartForSequenceClassification BartModel BeamForCausalLM BeamModel BeitModel BertForMaskedLM
BertForSequenceClassification BertForTokenClassification BertGenerationDecoder BertGenerationEncoder
BertLMHeadModel BertModel BigBirdForCausalLM BigBirdForMaskedLM BigBirdForSequenceClassification
BigBirdForTokenClassification BigBirdModel BigBirdPegasusForCausalLM BigBirdPegasusForConditionalGeneration
BigBirdPegasusForSequenceClassification BigBirdPegasusModel BioGptForCausalLM BioGptForSequenceClassification
BioGptForTokenClassification BioGptModel BitModel BitNetForCausalLM BitNetModel BlenderbotForCausalLM
BlenderbotForConditionalGeneration BlenderbotModel BlenderbotSmallForCausalLM
BlenderbotSmallForConditionalGeneration BlenderbotSmallModel Blip2ForConditionalGeneration Blip2Model
Blip2QFormerModel BlipForConditionalGeneration BlipModel BloomForCausalLM BloomForSequenceClassification
BloomForTokenClassification BloomModel BltForCausalLM BltModel BridgeTowerModel BrosForTokenClassification
BrosModel CLIPModel CLIPSegModel CLIPTextModel CLIPVisionModel CTRLForSequenceClassification CTRLLMHeadModel
CTRLModel CamembertForCausalLM CamembertForMaskedLM CamembertForSequenceClassification
CamembertForTokenClassification CamembertModel CanaryForConditionalGeneration CanaryModel
CanineForSequenceClassification CanineForTokenClassification CanineModel ChameleonForConditionalGeneration
ChameleonModel ChineseCLIPModel ChineseCLIPVisionModel ClapModel ClvpModelForConditionalGeneration
CodeGenForCausalLM CodeGenModel Cohere2ForCausalLM Cohere2Model Cohere2MoeForCausalLM Cohere2MoeModel
Cohere2VisionForConditionalGeneration Cohere2VisionModel CohereAsrForConditionalGeneration CohereAsrModel
CohereCompassForCausalLM CohereCompassForConditionalGeneration CohereCompassModel
CohereCompassTextForSequenceClassification CohereCompassTextModel CohereCompassVisionModel CohereForCausalLM
CohereModel ColModernVBertForRetrieval ColPaliForRetrieval ConditionalDetrModel ConvBertForMaskedLM
ConvBertForSequenceClassification ConvBertForTokenClassification ConvBertModel ConvNextModel ConvNextV2Model
Cosmos3EdgeForConditionalGeneration Cosmos3EdgeModel Cosmos3EdgeTextModel Cosmos3EdgeVisionModel
Cosmos3OmniForConditionalGeneration Cosmos3OmniModel CpmAntForCausalLM CpmAntModel CsmForConditionalGeneration
CvtModel CwmForCausalLM CwmModel DFineModel DINOv3ConvNextModel DINOv3ViTModel DPRQuestionEncoder DPTModel
DabDetrModel DacModel Data2VecAudioModel Data2VecTextForCausalLM Data2VecTextForMaskedLM
Data2VecTextForSequenceClassification Data2VecTextForTokenClassification Data2VecTextModel Data2VecVisionModel
DbrxForCausalLM DbrxModel DebertaForMaskedLM DebertaForSequenceClassification DebertaForTokenClassification
DebertaModel DebertaV2ForMaskedLM DebertaV2ForSequenceClassification DebertaV2ForTokenClassification
DebertaV2Model DecisionTransformerModel DeepseekOcr2ForConditionalGeneration DeepseekOcr2Model
DeepseekV2ForCausalLM DeepseekV2ForSequenceClassification DeepseekV2Model DeepseekV32ForCausalLM
DeepseekV32Model DeepseekV3ForCausalLM DeepseekV3ForSequenceClassification DeepseekV3ForTokenClassification
DeepseekV3Model DeepseekV4ForCausalLM DeepseekV4Model DeepseekVLForConditionalGeneration
DeepseekVLHybridForConditionalGeneration DeepseekVLHybridModel DeepseekVLModel DeformableDetrModel DeiTModel
Deimv2Model DepthProModel DetrModel DiaForConditionalGeneration DiaModel DiffLlamaForCausalLM
DiffLlamaForSequenceClassification DiffLlamaForTokenClassification DiffLlamaModel
DiffusionGemmaForBlockDiffusion DiffusionGemmaModel DinatModel Dinov2Model Dinov2WithRegistersModel
DistilBertForMaskedLM DistilBertForSequenceClassification DistilBertForTokenClassification DistilBertModel
DogeForCausalLM DogeForSequenceClassification DogeModel DonutSwinModel Dots1ForCausalLM Dots1Model
Dots3NoteForCausalLM Dots3NoteForConditionalGeneration Dots3NoteModel Dots3NoteTextModel EdgeTamModel
EdgeTamVideoModel EdgeTamVisionModel EfficientLoFTRModel EfficientNetModel ElectraForCausalLM
ElectraForMaskedLM ElectraForSequenceClassification ElectraForTokenClassification ElectraModel
EmbeddingGemma2Model EmbeddingGemma2TextModel Emu3ForCausalLM Emu3ForConditionalGeneration Emu3Model
EncodecModel EncoderDecoderModel Ernie4_5ForCausalLM Ernie4_5Model Ernie4_5_MoeForCausalLM Ernie4_5_MoeModel
Ernie4_5_VLMoeForConditionalGeneration Ernie4_5_VLMoeModel ErnieForCausalLM ErnieForMaskedLM
ErnieForSequenceClassification ErnieForTokenClassification ErnieModel EsmForMaskedLM
EsmForSequenceClassification EsmForTokenClassification EsmModel EsmcForMaskedLM EsmcForSequenceClassification
EsmcForTokenClassification EsmcModel EuroBertForMaskedLM EuroBertForSequenceClassification
EuroBertForTokenClassification EuroBertModel EvollaForProteinText2Text EvollaModel Exaone4ForCausalLM
Exaone4ForSequenceClassification Exaone4ForTokenClassification Exaone4Model Exaone4_5_ForConditionalGeneration
Exaone4_5_Model Exaone4_5_VisionModel ExaoneMoeForCausalLM ExaoneMoeModel FNetForMaskedLM
FNetForSequenceClassification FNetForTokenClassification FNetModel FSMTForConditionalGeneration FSMTModel
FalconForCausalLM FalconForSequenceClassification FalconForTokenClassification FalconH1ForCausalLM
FalconH1Model FalconMambaForCausalLM FalconMambaModel FalconModel FastSpeech2ConformerModel
FastSpeech2ConformerWithHifiGan FastVlmForConditionalGeneration FastVlmModel FlaubertForSequenceClassification
FlaubertForTokenClassification FlaubertModel FlaubertWithLMHeadModel FlavaModel FlexOlmoForCausalLM
FlexOlmoModel FlintForCausalLM FlintModel Florence2ForConditionalGeneration Florence2Model FocalNetModel
FunAsrNanoEncoder FunAsrNanoForConditionalGeneration FunAsrNanoModel FunnelBaseModel FunnelForMaskedLM
FunnelForSequenceClassification FunnelForTokenClassification FunnelModel FuyuForCausalLM FuyuModel GLPNModel
GPT2ForSequenceClassification GPT2ForTokenClassification GPT2LMHeadModel GPT2Model GPTBigCodeForCausalLM
GPTBigCodeForSequenceClassification GPTBigCodeForTokenClassification GPTBigCodeModel GPTJForCausalLM
GPTJForSequenceClassification GPTJModel GPTNeoForCausalLM GPTNeoForSequenceClassification
GPTNeoForTokenClassification GPTNeoModel GPTNeoXForCausalLM GPTNeoXForSequenceClassification
GPTNeoXForTokenClassification GPTNeoXJapaneseForCausalLM GPTNeoXJapaneseModel GPTNeoXModel Gemma2ForCausalLM
Gemma2ForSequenceClassification Gemma2ForTokenClassification Gemma2Model Gemma3ForCausalLM
Gemma3ForConditionalGeneration Gemma3ForSequenceClassification Gemma3Model Gemma3TextForSequenceClassification
Gemma3TextModel Gemma3nAudioEncoder Gemma3nForCausalLM Gemma3nForConditionalGeneration Gemma3nModel
Gemma3nTextModel Gemma4AssistantForCausalLM Gemma4AudioModel Gemma4ForCausalLM Gemma4ForConditionalGeneration
Gemma4Model Gemma4TextModel Gemma4UnifiedAssistantForCausalLM Gemma4UnifiedForCausalLM
Gemma4UnifiedForConditionalGeneration Gemma4UnifiedModel Gemma4UnifiedTextModel Gemma4VisionModel
GemmaForCausalLM GemmaForSequenceClassification GemmaForTokenClassification GemmaModel GitForCausalLM GitModel
Glm46VForConditionalGeneration Glm46VModel Glm4ForCausalLM Glm4ForSequenceClassification
Glm4ForTokenClassification Glm4Model Glm4MoeForCausalLM Glm4MoeLiteForCausalLM Glm4MoeLiteModel Glm4MoeModel
Glm4vForConditionalGeneration Glm4vModel Glm4vMoeForConditionalGeneration Glm4vMoeModel Glm4vMoeTextModel
Glm4vMoeVisionModel Glm4vTextModel Glm4vVisionModel Glm5NextForConditionalGeneration Glm5NextModel
Glm5NextTextModel Glm5NextVisionModel GlmAsrEncoder GlmAsrForConditionalGeneration GlmAsrModel GlmForCausalLM
GlmForSequenceClassification GlmForTokenClassification GlmImageModel GlmImageTextModel GlmImageVQVAE
GlmImageVisionModel GlmModel GlmMoeDsaForCausalLM GlmMoeDsaModel GlmOcrForConditionalGeneration GlmOcrModel
GlmOcrTextModel GlmOcrVisionModel GotOcr2ForConditionalGeneration GotOcr2Model GptOssForCausalLM
GptOssForSequenceClassification GptOssForTokenClassification GptOssModel GradiumPhononTTSModel
Granite4VisionForConditionalGeneration Granite4VisionModel GraniteDoclingForConditionalGeneration
GraniteDoclingModel GraniteDoclingTextModel GraniteDoclingVisionModel GraniteForCausalLM GraniteModel
GraniteMoeForCausalLM GraniteMoeHybridForCausalLM GraniteMoeHybridModel GraniteMoeModel
GraniteMoeSWAForCausalLM GraniteMoeSWAModel GraniteMoeSharedForCausalLM GraniteMoeSharedModel
GraniteSWAForCausalLM GraniteSWAModel GraniteSpeech5Encoder GraniteSpeech5ForCTC
GraniteSpeechForConditionalGeneration GraniteSpeechModel GraniteSpeechPlusForConditionalGeneration
GraniteSpeechPlusModel GroundingDinoModel GroupViTModel GteForMaskedLM GteForSequenceClassification
GteForTokenClassification GteModel HGNetV2Backbone HYV3ForCausalLM HYV3Model HYV4ForCausalLM HYV4Model
HeliumForCausalLM HeliumForSequenceClassification HeliumForTokenClassification HeliumModel HieraModel
HiggsAudioV2ForConditionalGeneration HiggsAudioV2TokenizerModel HrmTextForCausalLM HrmTextModel HubertModel
HunYuanDenseV1ForCausalLM HunYuanDenseV1ForSequenceClassification HunYuanDenseV1Model HunYuanMoEV1ForCausalLM
HunYuanMoEV1ForSequenceClassification HunYuanMoEV1Model HunYuanVLForConditionalGeneration HunYuanVLModel
HunYuanVLTextModel HunYuanVLVisionTransformer HyperCLOVAXForCausalLM HyperCLOVAXModel
HyperCLOVAXVisionV2ForConditionalGeneration HyperCLOVAXVisionV2Model IBertForMaskedLM
IBertForSequenceClassification IBertForTokenClassification IBertModel IJepaModel
Idefics2ForConditionalGeneration Idefics2Model Idefics3ForConditionalGeneration Idefics3Model
Idefics3VisionTransformer IdeficsForVisionText2Text IdeficsModel ImageGPTModel InformerModel
Inkling2ForCausalLM Inkling2ForConditionalGeneration Inkling2Model Inkling2TextModel Inkling2VisionModel
InklingForCausalLM InklingForConditionalGeneration InklingModel InklingTextModel
InstructBlipForConditionalGeneration InstructBlipModel InstructBlipVideoForConditionalGeneration
InstructBlipVideoModel InternVLForConditionalGeneration InternVLModel InternVLVisionModel Jais2ForCausalLM
Jais2Model JambaForCausalLM JambaForSequenceClassification JambaModel JanusForConditionalGeneration JanusModel
JetMoeForCausalLM JetMoeForSequenceClassification JetMoeModel JinaEmbeddingsV3ForMaskedLM
JinaEmbeddingsV3ForSequenceClassification JinaEmbeddingsV3ForTokenClassification JinaEmbeddingsV3Model
KimiK3ForConditionalGeneration KimiLinearForCausalLM KimiLinearModel Kimi_K25ForConditionalGeneration
Kimi_K25Model Kimi_K25VisionModel Kolibri1ForCausalLM Kolibri1Model Kosmos2ForConditionalGeneration
Kosmos2Model Kosmos2_5ForConditionalGeneration Kosmos2_5Model KyutaiSpeechToTextForConditionalGeneration
KyutaiSpeechToTextModel LEDForConditionalGeneration LEDModel LagunaForCausalLM LagunaModel LasrEncoder
LasrForCTC LayoutLMForMaskedLM LayoutLMForSequenceClassification LayoutLMForTokenClassification LayoutLMModel
LayoutLMv2ForSequenceClassification LayoutLMv2ForTokenClassification LayoutLMv2Model
LayoutLMv3ForSequenceClassification LayoutLMv3ForTokenClassification LayoutLMv3Model LevitModel
Lfm2ForCausalLM Lfm2Model Lfm2MoeForCausalLM Lfm2MoeModel Lfm2VlForConditionalGeneration Lfm2VlModel
Lfm3ForCausalLM Lfm3Model Lfm3VlForConditionalGeneration Lfm3VlModel Lfm3VlVisionModel
LightGlueForKeypointMatching LightOnOcrForConditionalGeneration LightOnOcrModel LiltForSequenceClassification
LiltForTokenClassification LiltModel Llama4ForCausalLM Llama4ForConditionalGeneration Llama4TextModel
LlamaForCausalLM LlamaForSequenceClassification LlamaForTokenClassification LlamaModel
LlavaForConditionalGeneration LlavaModel LlavaNextForConditionalGeneration LlavaNextModel
LlavaNextVideoForConditionalGeneration LlavaNextVideoModel LlavaOnevisionForConditionalGeneration
LlavaOnevisionModel LongT5ForConditionalGeneration LongT5Model LongcatFlashForCausalLM LongcatFlashModel
LongcatFlashNgramForCausalLM LongformerForMaskedLM LongformerForSequenceClassification
LongformerForTokenClassification LongformerModel LukeForMaskedLM LukeForSequenceClassification
LukeForTokenClassification LukeModel LwDetrModel LxmertModel M2M100ForConditionalGeneration M2M100Model
MBartForCausalLM MBartForConditionalGeneration MBartForSequenceClassification MBartModel MLCDVisionModel
MMGroundingDinoModel MPNetForMaskedLM MPNetForSequenceClassification MPNetForTokenClassification MPNetModel
MT5ForConditionalGeneration MT5ForSequenceClassification MT5ForTokenClassification MT5Model Mamba2ForCausalLM
Mamba2Model MambaForCausalLM MambaModel MarianForCausalLM MarianMTModel MarianModel
MarkupLMForSequenceClassification MarkupLMForTokenClassification MarkupLMModel Mask2FormerModel
MaskFormerModel MaskFormerSwinModel MegatronBertForCausalLM MegatronBertForMaskedLM
MegatronBertForSequenceClassification MegatronBertForTokenClassification MegatronBertModel MellumForCausalLM
MellumModel MetaClip2Model MgpstrForSceneTextRecognition MiMoV2FlashForCausalLM MiMoV2FlashModel
MimiDecoderModel MimiEncoderModel MimiModel MiniCPM3ForCausalLM MiniCPM3ForSequenceClassification
MiniCPM3Model MiniCPMOcrForConditionalGeneration MiniCPMOcrModel MiniCPMOcrVisionModel
MiniCPMV4_6ForConditionalGeneration MiniCPMV4_6Model MiniCPMV4_7ForConditionalGeneration MiniCPMV4_7Model
MiniCPMV4_7VisionModel MiniMaxForCausalLM MiniMaxForSequenceClassification MiniMaxForTokenClassification
MiniMaxM2ForCausalLM MiniMaxM2Model MiniMaxM3SparseForConditionalGeneration MiniMaxM3VLForCausalLM
MiniMaxM3VLModel MiniMaxM3VLTextModel MiniMaxModel Ministral3ForCausalLM Ministral3ForSequenceClassification
Ministral3ForTokenClassification Ministral3Model MinistralForCausalLM MinistralForSequenceClassification
MinistralForTokenClassification MinistralModel Mistral3ForConditionalGeneration Mistral3Model
Mistral4ForCausalLM Mistral4ForSequenceClassification Mistral4ForTokenClassification Mistral4Model
MistralForCausalLM MistralForSequenceClassification MistralForTokenClassification
MistralLarge4ForConditionalGeneration MistralLarge4Model MistralLarge4TextModel MistralModel
MixtralForCausalLM MixtralForSequenceClassification MixtralForTokenClassification MixtralModel
MllamaForCausalLM MllamaForConditionalGeneration MllamaModel MobileBertForMaskedLM
MobileBertForSequenceClassification MobileBertForTokenClassification MobileBertModel MobileNetV1Model
MobileNetV2Model MobileViTModel MobileViTV2Model ModernBertDecoderForCausalLM
ModernBertDecoderForSequenceClassification ModernBertDecoderModel ModernBertForMaskedLM
ModernBertForSequenceClassification ModernBertForTokenClassification ModernBertModel ModernVBertForMaskedLM
ModernVBertForSequenceClassification ModernVBertForTokenClassification ModernVBertModel
Molmo2ForConditionalGeneration Molmo2Model Molmo2TextModel MoonshineForConditionalGeneration MoonshineModel
MoonshineStreamingForConditionalGeneration MoonshineStreamingModel MoshiForCausalLM MoshiModel
MossTranscribeDiarizeAudioModel MossTranscribeDiarizeForConditionalGeneration MossTranscribeDiarizeModel
MptForCausalLM MptForSequenceClassification MptForTokenClassification MptModel MraForMaskedLM
MraForSequenceClassification MraForTokenClassification MraModel MuseGlimmerAssistantModel
MuseGlimmerForConditionalGeneration MuseGlimmerModel MuseGlimmerTextModel MuseGlimmerVisionModel
MuseSparkAudioModel MuseSparkForConditionalGeneration MuseSparkModel MuseSparkTextModel MuseSparkVisionModel
MusicFlamingoForConditionalGeneration MusicFlamingoModel MusicgenForCausalLM MusicgenMelodyForCausalLM
MusicgenMelodyModel MusicgenModel MvpForCausalLM MvpForConditionalGeneration MvpForSequenceClassification
MvpModel NanoChatForCausalLM NanoChatModel Nemotron3DiarizationAudioModel Nemotron3DiarizationModel
Nemotron3_5AsrForRNNT Nemotron3_5TranscribeAsrAudioModel Nemotron3_5TranscribeAudioModel
Nemotron3_5TranscribeForConditionalGeneration Nemotron3_5TranscribeModel
Nemotron3_5TranscribeWordTimestampModel NemotronAsrStreamingEncoder NemotronAsrStreamingForRNNT
NemotronForCausalLM NemotronForSequenceClassification NemotronForTokenClassification NemotronHForCausalLM
NemotronHModel NemotronH_Omni_Reasoning_V3 NemotronModel NeoMMEForMaskedLM NeoMMEModel NeuCodecModel
NllbMoeForConditionalGeneration NllbMoeModel NomicBertForMaskedLM NomicBertForSequenceClassification
NomicBertForTokenClassification NomicBertModel NystromformerForMaskedLM NystromformerForSequenceClassification
NystromformerForTokenClassification NystromformerModel OPTForCausalLM OPTForSequenceClassification OPTModel
Olmo2ForCausalLM Olmo2ForSequenceClassification Olmo2Model Olmo3ForCausalLM Olmo3ForSequenceClassification
Olmo3Model OlmoForCausalLM OlmoForSequenceClassification OlmoHybridForCausalLM OlmoHybridModel OlmoModel
OlmoeForCausalLM OlmoeModel OmDetTurboForObjectDetection OneFormerModel OpenAIGPTForSequenceClassification
OpenAIGPTLMHeadModel OpenAIGPTModel OpenAIPrivacyFilterForTokenClassification OpenAIPrivacyFilterModel
Ovis2ForConditionalGeneration Ovis2Model OwlViTModel Owlv2Model PI0ForConditionalGeneration PI0Model
PLBartForCausalLM PLBartForConditionalGeneration PLBartForSequenceClassification PLBartModel
PPDocLayoutV3Model PPDocLayoutV4Model PPFormulaNetForConditionalGeneration PPOCRV5MobileRecModel
PPOCRV5ServerRecModel PPOCRV6MediumDetModel PPOCRV6SmallDetModel PPOCRV6SmallRecModel PPOCRV6TinyRecModel
PaddleOCRVLForConditionalGeneration PaddleOCRVLModel PaliGemmaForConditionalGeneration PaliGemmaModel
ParakeetEncoder ParakeetForCTC ParakeetForRNNT ParakeetForTDT PatchTSMixerModel PatchTSTModel PeAudioEncoder
PeAudioModel PeAudioVideoEncoder PeAudioVideoModel PeVideoEncoder PeVideoModel PegasusForCausalLM
PegasusForConditionalGeneration PegasusModel PegasusXForConditionalGeneration PegasusXModel
PerceiverForMaskedLM PerceiverForSequenceClassification PerceiverModel PerceptionLMForConditionalGeneration
PerceptionLMModel PersimmonForCausalLM PersimmonForSequenceClassification PersimmonForTokenClassification
PersimmonModel Phi3ForCausalLM Phi3ForSequenceClassification Phi3ForTokenClassification Phi3Model
Phi4MultimodalForCausalLM Phi4MultimodalModel PhiForCausalLM PhiForSequenceClassification
PhiForTokenClassification PhiModel PhimoeForCausalLM PhimoeForSequenceClassification PhimoeModel
Pix2StructForConditionalGeneration PixioModel PixtralVisionModel PocketTTSAudioTokenizerDecoderModel
PocketTTSAudioTokenizerEncoderModel PocketTTSAudioTokenizerModel PocketTTSModel PoolFormerModel
Pop2PianoForConditionalGeneration ProphetNetForCausalLM ProphetNetForConditionalGeneration ProphetNetModel
PvtModel PvtV2Model QianfanOCRForConditionalGeneration QianfanOCRModel QianfanOCRVisionModel Qwen2AudioEncoder
Qwen2AudioForConditionalGeneration Qwen2AudioModel Qwen2ForCausalLM Qwen2ForSequenceClassification
Qwen2ForTokenClassification Qwen2Model Qwen2MoeForCausalLM Qwen2MoeForSequenceClassification
Qwen2MoeForTokenClassification Qwen2MoeModel Qwen2VLForConditionalGeneration Qwen2VLModel Qwen2VLTextModel
Qwen2_5OmniForConditionalGeneration Qwen2_5OmniThinkerForConditionalGeneration Qwen2_5OmniThinkerModel
Qwen2_5_VLForConditionalGeneration Qwen2_5_VLModel Qwen2_5_VLTextModel
Qwen2_5_VisionTransformerPretrainedModel Qwen3ASREncoder Qwen3ASRForConditionalGeneration
Qwen3ASRForTokenClassification Qwen3ASRModel Qwen3ForCausalLM Qwen3ForSequenceClassification
Qwen3ForTokenClassification Qwen3Model Qwen3MoeForCausalLM Qwen3MoeForSequenceClassification
Qwen3MoeForTokenClassification Qwen3MoeModel Qwen3NextForCausalLM Qwen3NextForSequenceClassification
Qwen3NextForTokenClassification Qwen3NextModel Qwen3OmniMoeForConditionalGeneration
Qwen3OmniMoeThinkerForConditionalGeneration Qwen3OmniMoeThinkerModel Qwen3VLForConditionalGeneration
Qwen3VLModel Qwen3VLMoeForConditionalGeneration Qwen3VLMoeModel Qwen3VLMoeTextModel Qwen3VLMoeVisionModel
Qwen3VLTextModel Qwen3VLVisionModel Qwen3_5ForCausalLM Qwen3_5ForConditionalGeneration
Qwen3_5ForSequenceClassification Qwen3_5ForTokenClassification Qwen3_5Model Qwen3_5MoeForCausalLM
Qwen3_5MoeForConditionalGeneration Qwen3_5MoeModel Qwen3_5MoeTextModel Qwen3_5MoeVisionModel
Qwen3_5TextForSequenceClassification Qwen3_5TextModel Qwen3_5VisionModel Qwen4ExpForCausalLM
Qwen4ExpForConditionalGeneration Qwen4ExpModel Qwen4ExpTextModel Qwen4ExpVisionModel RTDetrModel RTDetrV2Model
RadioModel RecurrentGemmaForCausalLM RecurrentGemmaModel ReformerForMaskedLM ReformerForSequenceClassification
ReformerModel ReformerModelWithLMHead RegNetModel RemBertForCausalLM RemBertForMaskedLM
RemBertForSequenceClassification RemBertForTokenClassification RemBertModel ResNetModel RfDetrModel
RoCBertForCausalLM RoCBertForMaskedLM RoCBertForSequenceClassification RoCBertForTokenClassification
RoCBertModel RoFormerForCausalLM RoFormerForMaskedLM RoFormerForSequenceClassification
RoFormerForTokenClassification RoFormerModel RobertaForCausalLM RobertaForMaskedLM
RobertaForSequenceClassification RobertaForTokenClassification RobertaModel RobertaPreLayerNormForCausalLM
RobertaPreLayerNormForMaskedLM RobertaPreLayerNormForSequenceClassification
RobertaPreLayerNormForTokenClassification RobertaPreLayerNormModel RwkvForCausalLM RwkvModel SEWDModel
SEWModel Sam2HieraDetModel Sam2Model Sam2VideoModel Sam2VisionModel Sam3LiteTextModel Sam3LiteTextTextModel
Sam3Model Sam3TrackerModel Sam3TrackerVideoModel Sam3ViTModel Sam3VideoModel Sam3VisionModel SamHQModel
SamHQVisionModel SamModel SamVisionModel Sapiens2Model SeamlessM4TForSpeechToText SeamlessM4TForTextToText
SeamlessM4TModel SeamlessM4Tv2ForSpeechToText SeamlessM4Tv2ForTextToText SeamlessM4Tv2Model SeedOssForCausalLM
SeedOssForSequenceClassification SeedOssForTokenClassification SeedOssModel SegGptModel SegformerModel
Siglip2Model Siglip2VisionModel SiglipModel SiglipVisionModel SmolLM3ForCausalLM
SmolLM3ForSequenceClassification SmolLM3ForTokenClassification SmolLM3Model SmolVLMForConditionalGeneration
SmolVLMModel SmolVLMVisionTransformer SolarOpenForCausalLM SolarOpenModel Speech2TextForConditionalGeneration
Speech2TextModel SpeechEncoderDecoderModel SpeechT5ForSpeechToText SpeechT5Model SplinterModel
SqueezeBertForMaskedLM SqueezeBertForSequenceClassification SqueezeBertForTokenClassification SqueezeBertModel
StableLmForCausalLM StableLmForSequenceClassification StableLmForTokenClassification StableLmModel
Starcoder2ForCausalLM Starcoder2ForSequenceClassification Starcoder2ForTokenClassification Starcoder2Model
Step3p7ForConditionalGeneration Step3p7Model SwiftFormerModel Swin2SRModel SwinModel Swinv2Model
SwitchTransformersForConditionalGeneration SwitchTransformersModel T5ForConditionalGeneration
T5ForSequenceClassification T5ForTokenClassification T5Gemma2Encoder T5Gemma2ForConditionalGeneration
T5Gemma2ForSequenceClassification T5Gemma2ForTokenClassification T5Gemma2Model T5GemmaForConditionalGeneration
T5GemmaForSequenceClassification T5GemmaForTokenClassification T5GemmaModel T5Model TableTransformerModel
TapasForMaskedLM TapasForSequenceClassification TapasModel TextNetModel TimeSeriesTransformerModel
TimesFm2_5Model TimesFmModel TimesformerModel TimmBackbone TimmWrapperModel Tipsv2Model Tipsv2TextModel
Tipsv2VisionModel TrOCRForCausalLM TvpModel UMT5ForConditionalGeneration UMT5ForSequenceClassification
UMT5ForTokenClassification UMT5Model UVDocModel UdopForConditionalGeneration UdopModel UltraVBertForMaskedLM
UltraVBertForSequenceClassification UltraVBertForTokenClassification UltraVBertModel UltrabertForMaskedLM
UltrabertForSequenceClassification UltrabertForTokenClassification UltrabertModel UniSpeechModel
UniSpeechSatModel UnivNetModel UnlimitedOcrForConditionalGeneration UnlimitedOcrModel VJEPA2Model
VaultGemmaForCausalLM VaultGemmaModel ViTMAEModel ViTMSNModel ViTModel VibeVoiceAcousticTokenizerDecoderModel
VibeVoiceAcousticTokenizerEncoderModel VibeVoiceAcousticTokenizerModel VibeVoiceAsrForConditionalGeneration
VibeVoiceAsrModel VibeVoiceForConditionalGeneration VideoLlama3ForConditionalGeneration VideoLlama3Model
VideoLlama3VisionModel VideoLlavaForConditionalGeneration VideoLlavaModel VideoMAEModel VideoPrismClipModel
VideoPrismVisionModel ViltModel VipLlavaForConditionalGeneration VipLlavaModel VisionEncoderDecoderModel
VisionTextDualEncoderModel VisualBertModel VitDetModel VitsModel VivitModel VoxtralEncoder
VoxtralForConditionalGeneration VoxtralModel VoxtralRealtimeEncoder VoxtralRealtimeForConditionalGeneration
VoxtralRealtimeModel VoxtralRealtimeTextModel Wav2Vec2BertModel Wav2Vec2ConformerModel Wav2Vec2Model
WavLMModel WhisperForCausalLM WhisperForConditionalGeneration WhisperModel XCLIPModel XGLMForCausalLM
XGLMModel XLMForSequenceClassification XLMForTokenClassification XLMModel XLMRobertaForCausalLM
XLMRobertaForMaskedLM XLMRobertaForSequenceClassification XLMRobertaForTokenClassification XLMRobertaModel
XLMRobertaXLForCausalLM XLMRobertaXLForMaskedLM XLMRobertaXLForSequenceClassification
XLMRobertaXLForTokenClassification XLMRobertaXLModel XLMWithLMHeadModel XLNetForSequenceClassification
XLNetForTokenClassification XLNetLMHeadModel XLNetModel Xcodec2Model XcodecModel XmodForCausalLM
XmodForMaskedLM XmodForSequenceClassification XmodForTokenClassification XmodModel YolosModel YosoForMaskedLM
YosoForSequenceClassification YosoForTokenClassification YosoModel YoutuForCausalLM YoutuModel
Zamba2ForCausalLM Zamba2ForSequenceClassification Zamba2Model ZambaForCausalLM ZambaForSequenceClassification
ZambaModel ZayaForCausalLM ZayaModel xLSTMForCausalLM xLSTMModel
"""

_MODELS = r"""
afmoe {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":200192,"hidden_size":2048,"intermediate_size":6144,"num_hidden_layers":32,"num_attention_heads":16,"head_dim":128,"max_position_embeddings":16384,"hidden_act":"silu","sliding_window":1024,"num_experts":64,"rms_norm_eps":1e-05}}
albert {"defaults":{"vocab_size":30000,"hidden_size":4096,"intermediate_size":16384,"num_hidden_layers":12,"num_attention_heads":64,"max_position_embeddings":512,"hidden_act":"gelu_new","tie_word_embeddings":true}}
apertus {"rotary":true,"rope":{"rope_type":"llama3","rope_theta":12000000.0,"factor":8.0,"original_max_position_embeddings":8192,"low_freq_factor":1.0,"high_freq_factor":4.0},"defaults":{"vocab_size":131072,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":65536,"hidden_act":"xielu","rms_norm_eps":1e-05}}
arcee {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":2560,"intermediate_size":18432,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":4096,"hidden_act":"relu2","rms_norm_eps":1e-05}}
aria {"text":"aria_text"}
aria_text {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":4096,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","moe_num_experts":8,"rms_norm_eps":1e-06}}
audioflamingo3 {"text":"qwen2"}
axk1 {"rotary":true,"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":163840,"hidden_size":7168,"intermediate_size":18432,"num_hidden_layers":61,"num_attention_heads":64,"num_key_value_heads":64,"max_position_embeddings":32768,"hidden_act":"silu","num_local_experts":192,"n_routed_experts":192,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
axk2 {"rotary":true,"kinds":["indexed_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":163840,"hidden_size":2048,"intermediate_size":5120,"num_hidden_layers":48,"num_attention_heads":32,"num_key_value_heads":32,"head_dim":64,"max_position_embeddings":131072,"hidden_act":"silu","num_local_experts":128,"n_routed_experts":128,"kv_lora_rank":128,"qk_nope_head_dim":64,"qk_rope_head_dim":32,"rms_norm_eps":1e-06}}
aya_vision {"text":"cohere2","defaults":{"tie_word_embeddings":true}}
bailing_hybrid {"rotary":true,"stateful":true,"rope":{"rope_type":"default","rope_theta":6000000.0},"kinds":["full_attention","linear_attention"],"aliases":{"max_position_embeddings":"model_max_length","num_local_experts":"num_experts"},"defaults":{"vocab_size":157184,"hidden_size":2560,"intermediate_size":6144,"num_hidden_layers":42,"num_attention_heads":32,"num_key_value_heads":32,"head_dim":128,"hidden_act":"silu","kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
bamba {"rotary":true,"stateful":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"kinds":["linear_attention"],"defaults":{"vocab_size":128000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":262144,"hidden_act":"silu","rms_norm_eps":1e-05}}
bart {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50265,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
beam {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":null},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":151936,"hidden_size":5120,"intermediate_size":20480,"num_hidden_layers":52,"num_attention_heads":48,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":8192,"hidden_act":"silu","sliding_window":512,"num_experts":256,"rms_norm_eps":1e-06}}
bert {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
bert-generation {"defaults":{"vocab_size":50358,"hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
big_bird {"defaults":{"vocab_size":50358,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":4096,"hidden_act":"gelu_new","tie_word_embeddings":true}}
bigbird_pegasus {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":96103,"hidden_size":1024,"num_hidden_layers":16,"num_attention_heads":16,"max_position_embeddings":4096,"activation_function":"gelu_new","tie_word_embeddings":true,"is_encoder_decoder":true}}
biogpt {"defaults":{"vocab_size":42384,"hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":1024,"hidden_act":"gelu","tie_word_embeddings":true}}
bitnet {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":128256,"hidden_size":2560,"intermediate_size":6912,"num_hidden_layers":30,"num_attention_heads":20,"num_key_value_heads":5,"max_position_embeddings":2048,"hidden_act":"relu2","rms_norm_eps":1e-05}}
blenderbot {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":8008,"hidden_size":2560,"num_hidden_layers":2,"num_attention_heads":32,"max_position_embeddings":128,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
blenderbot-small {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50265,"hidden_size":512,"num_hidden_layers":8,"num_attention_heads":16,"max_position_embeddings":512,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
blip {"text":"blip_text_model","defaults":{"tie_word_embeddings":true}}
blip-2 {"text":"opt"}
blip_text_model {"defaults":{"vocab_size":30524,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":8,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
bloom {"aliases":{"num_hidden_layers":"n_layer","num_attention_heads":"n_head"},"defaults":{"vocab_size":250880,"hidden_size":64,"num_hidden_layers":2,"num_attention_heads":8,"tie_word_embeddings":true}}
blt {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":260,"max_position_embeddings":4096}}
bros {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu"}}
camembert {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
canary {"defaults":{"vocab_size":16384,"tie_word_embeddings":true,"is_encoder_decoder":true}}
canine {"defaults":{"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":16384,"hidden_act":"gelu"}}
chameleon {"rotary":true,"defaults":{"vocab_size":65536,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":4096,"hidden_act":"silu","rms_norm_eps":1e-05}}
codegen {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":50400,"hidden_size":4096,"num_hidden_layers":28,"num_attention_heads":16,"max_position_embeddings":2048,"activation_function":"gelu_new"}}
cohere {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":256000,"hidden_size":8192,"intermediate_size":22528,"num_hidden_layers":40,"num_attention_heads":64,"max_position_embeddings":8192,"hidden_act":"silu","tie_word_embeddings":true}}
cohere2 {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":256000,"hidden_size":8192,"intermediate_size":22528,"num_hidden_layers":40,"num_attention_heads":64,"max_position_embeddings":8192,"hidden_act":"silu","tie_word_embeddings":true,"sliding_window":4096}}
cohere2_moe {"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":256000,"hidden_size":8192,"intermediate_size":22528,"num_hidden_layers":40,"num_attention_heads":64,"head_dim":128,"max_position_embeddings":8192,"hidden_act":"silu","tie_word_embeddings":true,"sliding_window":4096,"num_experts":8}}
cohere2_vision {"text":"cohere2","defaults":{"tie_word_embeddings":true}}
cohere_asr {"defaults":{"vocab_size":16384,"hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":8,"num_attention_heads":8,"max_position_embeddings":1024,"hidden_act":"relu","attention_bias":true,"is_encoder_decoder":true}}
cohere_compass {"text":"cohere_compass_text"}
cohere_compass_text {"rotary":true,"defaults":{"vocab_size":256000,"hidden_size":8192,"intermediate_size":22528,"num_hidden_layers":40,"num_attention_heads":64,"max_position_embeddings":8192,"hidden_act":"silu","tie_word_embeddings":true,"sliding_window":4096}}
colmodernvbert {}
colpali {}
convbert {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
cosmos3_edge {"text":"cosmos3_edge_text"}
cosmos3_edge_text {"rotary":true,"rope":{"rope_type":"default","rope_theta":100000000.0,"mrope_section":[24,20,20]},"defaults":{"vocab_size":131072,"hidden_size":2048,"intermediate_size":9216,"num_hidden_layers":28,"num_attention_heads":16,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"relu2","rms_norm_eps":1e-05}}
cosmos3_omni {"text":"qwen3_vl_text"}
cpmant {"defaults":{"vocab_size":30720,"hidden_size":4096,"num_hidden_layers":48,"num_attention_heads":32,"tie_word_embeddings":true}}
ctrl {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":246534,"hidden_size":1280,"num_hidden_layers":48,"num_attention_heads":16,"max_position_embeddings":256,"tie_word_embeddings":true}}
cwm {"rotary":true,"rope":{"rope_theta":1000000.0,"factor":16.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":128256,"hidden_size":6144,"intermediate_size":21504,"num_hidden_layers":64,"num_attention_heads":48,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":8192,"rms_norm_eps":1e-05}}
data2vec-text {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
dbrx {"rotary":true,"aliases":{"hidden_size":"d_model","num_hidden_layers":"n_layers","num_attention_heads":"n_heads","max_position_embeddings":"max_seq_len"},"defaults":{"vocab_size":32000,"hidden_size":2048,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":2048}}
deberta {"defaults":{"vocab_size":50265,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
deberta-v2 {"defaults":{"vocab_size":128100,"hidden_size":1536,"intermediate_size":6144,"num_hidden_layers":24,"num_attention_heads":24,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
deepseek_ocr2 {"text":"deepseek_ocr2_text"}
deepseek_ocr2_text {"rotary":true,"aliases":{"num_experts":"n_routed_experts"},"defaults":{"vocab_size":102400,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","num_experts":64,"n_routed_experts":64,"rms_norm_eps":1e-06}}
deepseek_v2 {"rotary":true,"aliases":{"num_experts":"n_routed_experts"},"defaults":{"vocab_size":102400,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","num_experts":64,"n_routed_experts":64,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
deepseek_v3 {"rotary":true,"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":129280,"hidden_size":7168,"intermediate_size":18432,"num_hidden_layers":61,"num_attention_heads":128,"num_key_value_heads":128,"max_position_embeddings":4096,"hidden_act":"silu","num_local_experts":256,"n_routed_experts":256,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
deepseek_v32 {"rotary":true,"kinds":["indexed_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":129280,"hidden_size":7168,"intermediate_size":18432,"num_hidden_layers":61,"num_attention_heads":128,"num_key_value_heads":128,"head_dim":64,"max_position_embeddings":163840,"hidden_act":"silu","num_local_experts":256,"n_routed_experts":256,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
deepseek_v4 {"rotary":true,"stateful":true,"rope":{"main":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":0.125},"compress":{"rope_theta":160000.0,"rope_type":"default","partial_rotary_factor":0.125}},"kinds":["compressed_sparse_attention","heavily_compressed_attention"],"aliases":{"intermediate_size":"moe_intermediate_size","num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":129280,"hidden_size":4096,"intermediate_size":2048,"num_hidden_layers":43,"num_attention_heads":64,"num_key_value_heads":1,"head_dim":512,"max_position_embeddings":1048576,"hidden_act":"silu","sliding_window":128,"num_local_experts":256,"n_routed_experts":256,"rms_norm_eps":1e-06}}
deepseek_vl {"text":"llama","defaults":{"tie_word_embeddings":true}}
deepseek_vl_hybrid {"text":"llama","defaults":{"tie_word_embeddings":true}}
dia {"defaults":{"is_encoder_decoder":true}}
diffllama {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":2048,"intermediate_size":8192,"num_hidden_layers":16,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-05}}
diffusion_gemma {"text":"diffusion_gemma_text","defaults":{"tie_word_embeddings":true}}
diffusion_gemma_text {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"proportional","partial_rotary_factor":0.25,"rope_theta":1000000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":262144,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":30,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":131072,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":512,"rms_norm_eps":1e-06}}
distilbert {"aliases":{"hidden_size":"dim","num_hidden_layers":"n_layers","num_attention_heads":"n_heads"},"defaults":{"vocab_size":30522,"hidden_size":768,"num_hidden_layers":6,"num_attention_heads":12,"max_position_embeddings":512,"tie_word_embeddings":true}}
doge {"rotary":true,"defaults":{"vocab_size":32768,"hidden_size":1024,"intermediate_size":2048,"num_hidden_layers":32,"num_attention_heads":8,"max_position_embeddings":2048,"hidden_act":"silu","num_experts":16384,"rms_norm_eps":1e-06}}
dots1 {"rotary":true,"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":152064,"hidden_size":4608,"intermediate_size":10944,"num_hidden_layers":62,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","sliding_window":4096,"max_window_layers":62,"rms_norm_eps":1e-06}}
dots3_note {"text":"dots3_note_text"}
dots3_note_text {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":50000.0,"partial_rotary_factor":0.25},"indexed_attention":{"rope_type":"default","rope_theta":80000000.0,"partial_rotary_factor":0.25}},"kinds":["indexed_attention","sliding_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":152064,"hidden_size":5120,"intermediate_size":13824,"num_hidden_layers":46,"num_attention_heads":128,"num_key_value_heads":128,"head_dim":256,"max_position_embeddings":524288,"hidden_act":"silu","num_local_experts":256,"n_routed_experts":256,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
electra {"defaults":{"vocab_size":30522,"hidden_size":256,"intermediate_size":1024,"num_hidden_layers":12,"num_attention_heads":4,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
emu3 {"text":"emu3_text_model"}
emu3_text_model {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":184622,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":9216,"hidden_act":"silu","rms_norm_eps":1e-05}}
encoder-decoder {"defaults":{"is_encoder_decoder":true}}
ernie {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
ernie4_5 {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":103424,"hidden_size":1024,"intermediate_size":3072,"num_hidden_layers":18,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","tie_word_embeddings":true,"rms_norm_eps":1e-05}}
ernie4_5_moe {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"aliases":{"num_experts":"moe_num_experts"},"defaults":{"vocab_size":103424,"hidden_size":2560,"intermediate_size":12288,"num_hidden_layers":28,"num_attention_heads":20,"num_key_value_heads":4,"max_position_embeddings":131072,"hidden_act":"silu","tie_word_embeddings":true,"num_experts":64,"moe_num_experts":64,"rms_norm_eps":1e-05}}
ernie4_5_vl_moe {"text":"ernie4_5_vl_moe_text","defaults":{"tie_word_embeddings":true}}
ernie4_5_vl_moe_text {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"aliases":{"num_experts":"moe_num_experts"},"defaults":{"vocab_size":103424,"hidden_size":2560,"intermediate_size":12288,"num_hidden_layers":28,"num_attention_heads":20,"num_key_value_heads":4,"max_position_embeddings":131072,"hidden_act":"silu","tie_word_embeddings":true,"num_experts":64,"moe_num_experts":64,"rms_norm_eps":1e-05}}
esm {"defaults":{"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":1026,"tie_word_embeddings":true}}
esmc {"rotary":true,"defaults":{"vocab_size":64,"hidden_size":2560,"intermediate_size":6912,"num_hidden_layers":80,"num_attention_heads":40,"max_position_embeddings":2048,"hidden_act":"silu"}}
eurobert {"rotary":true,"defaults":{"vocab_size":128256,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":8192,"hidden_act":"silu","rms_norm_eps":1e-05}}
evolla {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":128256,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":8192,"hidden_act":"silu","rms_norm_eps":1e-05}}
exaone4 {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":102400,"hidden_size":4096,"intermediate_size":16384,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","sliding_window":4096,"rms_norm_eps":1e-05}}
exaone4_5 {"text":"exaone4"}
exaone_moe {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":102400,"hidden_size":4096,"intermediate_size":16384,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","sliding_window":4096,"num_experts":64,"rms_norm_eps":1e-05}}
falcon {"rotary":true,"defaults":{"vocab_size":65024,"hidden_size":4544,"num_hidden_layers":32,"num_attention_heads":71,"max_position_embeddings":2048,"tie_word_embeddings":true}}
falcon_h1 {"rotary":true,"stateful":true,"kinds":["hybrid"],"defaults":{"vocab_size":128000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":8192,"hidden_act":"silu","rms_norm_eps":1e-05}}
falcon_mamba {"stateful":true,"kinds":["linear_attention"],"defaults":{"vocab_size":50280,"hidden_size":768,"num_hidden_layers":32,"hidden_act":"silu","tie_word_embeddings":true}}
fast_vlm {"text":"qwen2"}
flaubert {"aliases":{"hidden_size":"emb_dim","num_hidden_layers":"n_layers","num_attention_heads":"n_heads"},"defaults":{"vocab_size":30145,"hidden_size":2048,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":512,"tie_word_embeddings":true}}
flex_olmo {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"aliases":{"num_local_experts":"num_experts"},"defaults":{"vocab_size":100352,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":4096,"hidden_act":"silu","num_experts":7,"num_local_experts":7,"rms_norm_eps":1e-06}}
flint {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":150144,"hidden_size":2048,"intermediate_size":6144,"num_hidden_layers":49,"num_attention_heads":32,"num_key_value_heads":4,"head_dim":128,"max_position_embeddings":262144,"hidden_act":"silu","sliding_window":513,"num_experts":256,"rms_norm_eps":1e-06}}
florence2 {"text":"bart","defaults":{"tie_word_embeddings":true,"is_encoder_decoder":true}}
fnet {"defaults":{"vocab_size":32000,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"max_position_embeddings":512,"hidden_act":"gelu_new","tie_word_embeddings":true}}
fsmt {"aliases":{"vocab_size":"tgt_vocab_size","hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":42024,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"relu","is_encoder_decoder":true}}
fun_asr_nano {"text":"qwen3","defaults":{"tie_word_embeddings":true}}
funnel {"aliases":{"hidden_size":"d_model","num_attention_heads":"n_head"},"defaults":{"vocab_size":30522,"hidden_size":768,"num_attention_heads":12,"hidden_act":"gelu_new","tie_word_embeddings":true}}
fuyu {"text":"persimmon"}
gemma {"rotary":true,"defaults":{"vocab_size":256000,"hidden_size":3072,"intermediate_size":24576,"num_hidden_layers":28,"num_attention_heads":16,"num_key_value_heads":16,"head_dim":256,"max_position_embeddings":8192,"hidden_act":"gelu_pytorch_tanh","tie_word_embeddings":true,"rms_norm_eps":1e-06}}
gemma2 {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":256000,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":26,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":8192,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":4096,"rms_norm_eps":1e-06}}
gemma3 {"text":"gemma3_text","defaults":{"tie_word_embeddings":true}}
gemma3_text {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"default","rope_theta":1000000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":262208,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":26,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":131072,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":4096,"rms_norm_eps":1e-06}}
gemma3n {"text":"gemma3n_text","defaults":{"tie_word_embeddings":true}}
gemma3n_text {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"default","rope_theta":1000000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":262400,"hidden_size":2048,"intermediate_size":16384,"num_hidden_layers":35,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":256,"max_position_embeddings":32768,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":512,"rms_norm_eps":1e-06}}
gemma4 {"text":"gemma4_text","defaults":{"tie_word_embeddings":true}}
gemma4_assistant {"defaults":{"tie_word_embeddings":true}}
gemma4_text {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"proportional","partial_rotary_factor":0.25,"rope_theta":1000000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":262144,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":30,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":131072,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":512,"rms_norm_eps":1e-06}}
gemma4_unified {"text":"gemma4_unified_text","defaults":{"tie_word_embeddings":true}}
gemma4_unified_assistant {"text":"gemma4_unified_text","defaults":{"tie_word_embeddings":true}}
gemma4_unified_text {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"proportional","partial_rotary_factor":0.25,"rope_theta":1000000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":262144,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":30,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":262144,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":1024,"rms_norm_eps":1e-06}}
git {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":6,"num_attention_heads":12,"max_position_embeddings":1024,"hidden_act":"gelu"}}
glm {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"defaults":{"vocab_size":151552,"hidden_size":4096,"intermediate_size":13696,"num_hidden_layers":40,"num_attention_heads":32,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","attention_bias":true,"rms_norm_eps":1.5625e-07}}
glm4 {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"defaults":{"vocab_size":151552,"hidden_size":4096,"intermediate_size":13696,"num_hidden_layers":40,"num_attention_heads":32,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","attention_bias":true,"rms_norm_eps":1.5625e-07}}
glm46v {"text":"glm4v_text"}
glm4_moe {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":151552,"hidden_size":4096,"intermediate_size":10944,"num_hidden_layers":46,"num_attention_heads":96,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","num_local_experts":128,"n_routed_experts":128,"rms_norm_eps":1e-05}}
glm4_moe_lite {"rotary":true,"aliases":{"head_dim":"qk_rope_head_dim","num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":154880,"hidden_size":2048,"intermediate_size":10240,"num_hidden_layers":47,"num_attention_heads":20,"num_key_value_heads":20,"head_dim":64,"max_position_embeddings":202752,"hidden_act":"silu","num_local_experts":64,"n_routed_experts":64,"kv_lora_rank":512,"qk_nope_head_dim":192,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
glm4v {"text":"glm4v_text"}
glm4v_moe {"text":"glm4v_moe_text"}
glm4v_moe_text {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":151424,"hidden_size":4096,"intermediate_size":10944,"num_hidden_layers":46,"num_attention_heads":96,"num_key_value_heads":8,"max_position_embeddings":65536,"hidden_act":"silu","attention_bias":true,"num_local_experts":128,"n_routed_experts":128,"rms_norm_eps":1e-05}}
glm4v_text {"rotary":true,"defaults":{"vocab_size":151552,"hidden_size":4096,"intermediate_size":13696,"num_hidden_layers":40,"num_attention_heads":32,"num_key_value_heads":2,"max_position_embeddings":32768,"hidden_act":"silu","rms_norm_eps":1e-05}}
glm5_next {"text":"glm5_next_text","stateful":true}
glm5_next_text {"stateful":true,"kinds":["indexed_attention","linear_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":154880,"hidden_size":4096,"intermediate_size":12288,"num_hidden_layers":45,"num_attention_heads":64,"num_key_value_heads":64,"max_position_embeddings":1048576,"hidden_act":"silu","num_local_experts":288,"n_routed_experts":288,"kv_lora_rank":512,"qk_nope_head_dim":256,"rms_norm_eps":1e-05}}
glm_moe_dsa {"rotary":true,"kinds":["indexed_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":154880,"hidden_size":6144,"intermediate_size":12288,"num_hidden_layers":78,"num_attention_heads":64,"num_key_value_heads":64,"head_dim":64,"max_position_embeddings":202752,"hidden_act":"silu","num_local_experts":256,"n_routed_experts":256,"kv_lora_rank":512,"qk_nope_head_dim":192,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
glm_ocr {"text":"glm_ocr_text"}
glm_ocr_text {"rotary":true,"defaults":{"vocab_size":59392,"hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":16,"num_attention_heads":16,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","rms_norm_eps":1e-05}}
glmasr {"text":"llama","defaults":{"tie_word_embeddings":true}}
glmga {"text":"glm4v_text"}
got_ocr2 {"text":"qwen2","defaults":{"tie_word_embeddings":true}}
gpt-sw3 {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":50257,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":1024,"activation_function":"gelu_new","tie_word_embeddings":true}}
gpt2 {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":50257,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":1024,"activation_function":"gelu_new","tie_word_embeddings":true}}
gpt_bigcode {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":50257,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":1024,"activation_function":"gelu_pytorch_tanh","tie_word_embeddings":true}}
gpt_neo {"aliases":{"num_hidden_layers":"num_layers","num_attention_heads":"num_heads"},"defaults":{"vocab_size":50257,"hidden_size":2048,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":2048,"activation_function":"gelu_new","tie_word_embeddings":true}}
gpt_neox {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.25,"rope_type":"default"},"defaults":{"vocab_size":50432,"hidden_size":6144,"intermediate_size":24576,"num_hidden_layers":44,"num_attention_heads":64,"max_position_embeddings":2048,"hidden_act":"gelu","attention_bias":true}}
gpt_neox_japanese {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":1.0,"rope_type":"default"},"defaults":{"vocab_size":32000,"hidden_size":2560,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"gelu","tie_word_embeddings":true}}
gpt_oss {"rotary":true,"rope":{"rope_type":"yarn","factor":32.0,"beta_fast":32.0,"beta_slow":1.0,"truncate":false,"original_max_position_embeddings":4096,"rope_theta":150000.0},"kinds":["full_attention","sliding_attention"],"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":201088,"hidden_size":2880,"intermediate_size":2880,"num_hidden_layers":36,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":64,"max_position_embeddings":131072,"hidden_act":"silu","attention_bias":true,"sliding_window":128,"num_experts":128,"num_local_experts":128,"rms_norm_eps":1e-05}}
gptj {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":50400,"hidden_size":4096,"num_hidden_layers":28,"num_attention_heads":16,"max_position_embeddings":2048,"activation_function":"gelu_new"}}
granite {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-06}}
granite4_vision {"text":"granite4_vision_text"}
granite4_vision_text {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-06}}
granite_docling {"text":"granite_docling_text","defaults":{"tie_word_embeddings":true}}
granite_docling_text {"rotary":true,"defaults":{"vocab_size":133800,"hidden_size":1024,"intermediate_size":2048,"num_hidden_layers":28,"num_attention_heads":16,"num_key_value_heads":4,"max_position_embeddings":32768,"hidden_act":"silu","tie_word_embeddings":true,"rms_norm_eps":1e-05}}
granite_speech {"text":"granite","defaults":{"tie_word_embeddings":true}}
granite_speech_plus {"text":"granite","defaults":{"tie_word_embeddings":true}}
granite_swa {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":100352,"hidden_size":2560,"intermediate_size":8192,"num_hidden_layers":24,"num_attention_heads":20,"num_key_value_heads":4,"max_position_embeddings":8192,"hidden_act":"silu","tie_word_embeddings":true,"sliding_window":128,"rms_norm_eps":1e-05}}
granitemoe {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","num_local_experts":8,"rms_norm_eps":1e-06}}
granitemoe_swa {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","sliding_window":128,"num_local_experts":8,"rms_norm_eps":1e-06}}
granitemoehybrid {"rotary":true,"stateful":true,"kinds":["linear_attention"],"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","num_local_experts":8,"rms_norm_eps":1e-06}}
granitemoeshared {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","num_local_experts":8,"rms_norm_eps":1e-06}}
gte {"rotary":true,"rope":{"rope_theta":160000.0,"rope_type":"default"},"defaults":{"vocab_size":250048,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":8192,"hidden_act":"gelu","tie_word_embeddings":true}}
helium {"rotary":true,"rope":{"rope_theta":100000.0,"rope_type":"default"},"defaults":{"vocab_size":48000,"hidden_size":2560,"intermediate_size":7040,"num_hidden_layers":24,"num_attention_heads":20,"num_key_value_heads":20,"head_dim":128,"max_position_embeddings":4096,"hidden_act":"silu","rms_norm_eps":1e-08}}
hrm_text {"rotary":true,"defaults":{"vocab_size":151808,"hidden_size":1536,"intermediate_size":4096,"num_hidden_layers":16,"num_attention_heads":12,"head_dim":128,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-06}}
hunyuan_v1_dense {"rotary":true,"defaults":{"vocab_size":290943,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-05}}
hunyuan_v1_moe {"rotary":true,"aliases":{"num_local_experts":"num_experts"},"defaults":{"vocab_size":290943,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","num_experts":1,"num_local_experts":1,"rms_norm_eps":1e-05}}
hunyuan_vl {"text":"hunyuan_vl_text","defaults":{"tie_word_embeddings":true}}
hunyuan_vl_text {"rotary":true,"defaults":{"vocab_size":290943,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","tie_word_embeddings":true,"rms_norm_eps":1e-05}}
hy_v3 {"rotary":true,"rope":{"rope_theta":11158840.0,"rope_type":"default"},"aliases":{"num_local_experts":"num_experts"},"defaults":{"vocab_size":120832,"hidden_size":4096,"intermediate_size":13312,"num_hidden_layers":80,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","num_experts":192,"num_local_experts":192,"rms_norm_eps":1e-05}}
hy_v4 {"rotary":true,"kinds":["indexed_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":120832,"hidden_size":2816,"intermediate_size":6912,"num_hidden_layers":34,"num_attention_heads":32,"num_key_value_heads":32,"head_dim":256,"max_position_embeddings":262144,"hidden_act":"silu","num_local_experts":256,"n_routed_experts":256,"kv_lora_rank":512,"qk_nope_head_dim":192,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
hyperclovax {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-06}}
hyperclovax_vision_v2 {"text":"hyperclovax","defaults":{"tie_word_embeddings":true}}
ibert {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
idefics {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-06}}
idefics2 {"text":"mistral"}
idefics3 {"text":"llama"}
inkling2 {"text":"inkling2_text"}
inkling2_text {"kinds":["hybrid","hybrid_sliding"],"aliases":{"intermediate_size":"moe_intermediate_size","sliding_window":"sliding_window_size","num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":201024,"hidden_size":4608,"intermediate_size":2304,"num_hidden_layers":48,"num_attention_heads":48,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":1048576,"hidden_act":"silu","sliding_window":1024,"num_local_experts":384,"n_routed_experts":384,"rms_norm_eps":1e-06}}
inkling_mm_model {"text":"inkling_text"}
inkling_text {"kinds":["hybrid","hybrid_sliding"],"aliases":{"sliding_window":"sliding_window_size","num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":201024,"hidden_size":6144,"intermediate_size":24576,"num_hidden_layers":66,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":512,"num_local_experts":256,"n_routed_experts":256,"rms_norm_eps":1e-06}}
instructblip {"text":"opt"}
instructblipvideo {"text":"opt"}
internlm3 {"rotary":true,"defaults":{"vocab_size":128512,"hidden_size":4096,"intermediate_size":10240,"num_hidden_layers":48,"num_attention_heads":32,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":32768,"hidden_act":"silu","rms_norm_eps":1e-05}}
internvl {"text":"qwen2","defaults":{"tie_word_embeddings":true}}
iquestcoder {"rotary":true,"defaults":{"vocab_size":76800,"hidden_size":5120,"intermediate_size":27648,"num_hidden_layers":80,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","rms_norm_eps":1e-05}}
jais2 {"rotary":true,"defaults":{"vocab_size":150272,"hidden_size":3328,"intermediate_size":26624,"num_hidden_layers":32,"num_attention_heads":26,"max_position_embeddings":8192,"hidden_act":"relu2","attention_bias":true,"mlp_bias":true}}
jamba {"stateful":true,"kinds":["full_attention","linear_attention"],"aliases":{"num_local_experts":"num_experts"},"defaults":{"vocab_size":65536,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":262144,"hidden_act":"silu","num_experts":16,"num_local_experts":16,"rms_norm_eps":1e-06}}
janus {"text":"llama","defaults":{"tie_word_embeddings":true}}
jetmoe {"rotary":true,"aliases":{"head_dim":"kv_channels"},"defaults":{"vocab_size":32000,"hidden_size":2048,"intermediate_size":5632,"num_hidden_layers":12,"num_key_value_heads":16,"head_dim":128,"max_position_embeddings":4096,"activation_function":"silu","tie_word_embeddings":true,"num_local_experts":8,"rms_norm_eps":1e-06}}
jina_embeddings_v3 {"rotary":true,"rope":{"rope_theta":20000.0,"rope_type":"default"},"defaults":{"vocab_size":250002,"hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":8194,"hidden_act":"gelu","tie_word_embeddings":true}}
kimi_k25 {"text":"deepseek_v3","defaults":{"tie_word_embeddings":true}}
kimi_linear {"stateful":true,"kinds":["full_attention","linear_attention"],"aliases":{"max_position_embeddings":"model_max_length","num_local_experts":"num_experts"},"defaults":{"vocab_size":163840,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":27,"num_attention_heads":32,"num_key_value_heads":32,"hidden_act":"silu","kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
kolibri1 {"rotary":true,"kinds":["full_attention","sliding_attention"],"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":128000,"hidden_size":2560,"num_hidden_layers":50,"num_attention_heads":48,"num_key_value_heads":4,"head_dim":128,"max_position_embeddings":262144,"hidden_act":"silu","sliding_window":513,"rms_norm_eps":1e-06}}
kosmos-2 {"text":"kosmos_2_text_model","defaults":{"tie_word_embeddings":true}}
kosmos-2.5 {"text":"kosmos_2_5_text_model","defaults":{"tie_word_embeddings":true}}
kosmos_2_5_text_model {"aliases":{"hidden_size":"embed_dim","num_hidden_layers":"layers","num_attention_heads":"attention_heads"},"defaults":{"vocab_size":108481,"hidden_size":1536,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":4096,"activation_function":"gelu","tie_word_embeddings":true}}
kosmos_2_text_model {"aliases":{"hidden_size":"embed_dim","num_hidden_layers":"layers","num_attention_heads":"attention_heads"},"defaults":{"vocab_size":65037,"hidden_size":2048,"num_hidden_layers":24,"num_attention_heads":32,"max_position_embeddings":2048,"activation_function":"gelu","tie_word_embeddings":true}}
kyutai_speech_to_text {"rotary":true,"defaults":{"vocab_size":4001,"hidden_size":2048,"num_hidden_layers":48,"num_attention_heads":32,"max_position_embeddings":750,"hidden_act":"silu","sliding_window":375,"rms_norm_eps":1e-08}}
laguna {"rotary":true,"rope":{"full_attention":{"rope_type":"default","rope_theta":500000.0,"partial_rotary_factor":0.5},"sliding_attention":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":1.0}},"defaults":{"vocab_size":100352,"hidden_size":2048,"intermediate_size":8192,"num_hidden_layers":40,"num_attention_heads":48,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":512,"num_experts":256,"rms_norm_eps":1e-06}}
layoutlm {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
layoutlmv2 {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu"}}
layoutlmv3 {"defaults":{"vocab_size":50265,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu"}}
led {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50265,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
lfm2 {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":65536,"hidden_size":2560,"intermediate_size":12288,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":128000,"tie_word_embeddings":true}}
lfm2_moe {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":65536,"hidden_size":2048,"intermediate_size":7168,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":128000,"tie_word_embeddings":true,"num_experts":32}}
lfm2_vl {"text":"lfm2","defaults":{"tie_word_embeddings":true}}
lfm3 {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"proportional","rope_theta":1000000.0,"partial_rotary_factor":0.5}},"kinds":["conv","full_attention","sliding_attention"],"aliases":{"rms_norm_eps":"norm_eps"},"defaults":{"vocab_size":128000,"hidden_size":2048,"intermediate_size":7680,"num_hidden_layers":24,"num_attention_heads":16,"num_key_value_heads":4,"head_dim":128,"max_position_embeddings":128000,"tie_word_embeddings":true,"sliding_window":256,"rms_norm_eps":1e-05}}
lfm3_vl {"text":"lfm3","defaults":{"tie_word_embeddings":true}}
lighton_ocr {"text":"qwen3","defaults":{"tie_word_embeddings":true}}
lilt {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu"}}
llama {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-06}}
llama4 {"text":"llama4_text"}
llama4_text {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"kinds":["chunked_attention","full_attention"],"defaults":{"vocab_size":202048,"hidden_size":5120,"intermediate_size":8192,"num_hidden_layers":48,"num_attention_heads":40,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","num_local_experts":16,"rms_norm_eps":1e-05}}
llava {"text":"llama"}
llava_next {"text":"llama"}
llava_next_video {"text":"llama"}
llava_onevision {"text":"qwen2"}
longcat_flash {"rotary":true,"rope":{"rope_theta":10000000.0,"rope_type":"default"},"aliases":{"intermediate_size":"ffn_hidden_size","num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":131072,"hidden_size":6144,"intermediate_size":12288,"num_attention_heads":64,"head_dim":64,"max_position_embeddings":131072,"hidden_act":"silu","num_local_experts":512,"n_routed_experts":512,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
longformer {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
longt5 {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads","head_dim":"d_kv"},"defaults":{"vocab_size":32128,"hidden_size":512,"num_hidden_layers":6,"num_attention_heads":8,"head_dim":64,"tie_word_embeddings":true,"is_encoder_decoder":true}}
luke {"defaults":{"vocab_size":50267,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
m2m_100 {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":128112,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"relu","tie_word_embeddings":true,"is_encoder_decoder":true}}
mamba {"stateful":true,"kinds":["linear_attention"],"defaults":{"vocab_size":50280,"hidden_size":768,"num_hidden_layers":32,"hidden_act":"silu","tie_word_embeddings":true}}
mamba2 {"stateful":true,"kinds":["linear_attention"],"defaults":{"vocab_size":32768,"hidden_size":4096,"num_hidden_layers":64,"head_dim":64,"hidden_act":"silu"}}
marian {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":58101,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
markuplm {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu"}}
mbart {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50265,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
megatron-bert {"defaults":{"vocab_size":29056,"hidden_size":1024,"intermediate_size":4096,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
mellum {"rotary":true,"rope":{"full_attention":{"rope_type":"default","rope_theta":500000.0},"sliding_attention":{"rope_type":"default","rope_theta":10000.0}},"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":98304,"hidden_size":2304,"intermediate_size":7168,"num_hidden_layers":28,"num_attention_heads":32,"num_key_value_heads":4,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":1024,"rms_norm_eps":1e-06}}
mimo_v2_flash {"rotary":true,"rope":{"full_attention":{"rope_type":"default","rope_theta":5000000.0,"partial_rotary_factor":0.334},"sliding_attention":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":0.334}},"kinds":["full_attention","sliding_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":152576,"hidden_size":4096,"intermediate_size":16384,"num_hidden_layers":48,"num_attention_heads":64,"num_key_value_heads":4,"head_dim":192,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":129,"num_local_experts":256,"n_routed_experts":256,"rms_norm_eps":1e-05}}
minicpm3 {"rotary":true,"defaults":{"vocab_size":73448,"hidden_size":2560,"intermediate_size":6400,"num_hidden_layers":62,"num_attention_heads":40,"num_key_value_heads":40,"max_position_embeddings":32768,"hidden_act":"silu","tie_word_embeddings":true,"kv_lora_rank":256,"qk_nope_head_dim":64,"qk_rope_head_dim":32,"rms_norm_eps":1e-05}}
minicpm_ocr {"text":"qwen3_5_text","stateful":true,"defaults":{"tie_word_embeddings":true}}
minicpmv4_6 {"text":"qwen3_5_text","stateful":true}
minicpmv4_7 {"text":"qwen3_5_text","stateful":true}
minimax {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"kinds":["full_attention","linear_attention"],"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","num_experts":8,"num_local_experts":8,"rms_norm_eps":1e-05}}
minimax_m2 {"rotary":true,"rope":{"rope_theta":5000000.0,"rope_type":"default"},"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":200064,"hidden_size":3072,"intermediate_size":1536,"num_hidden_layers":62,"num_attention_heads":48,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":196608,"hidden_act":"silu","num_experts":256,"num_local_experts":256,"rms_norm_eps":1e-06}}
minimax_m3_vl {"text":"minimax_m3_vl_text"}
minimax_m3_vl_text {"rotary":true,"rope":{"rope_theta":5000000.0,"rope_type":"default"},"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":200064,"hidden_size":6144,"intermediate_size":3072,"num_hidden_layers":60,"num_attention_heads":64,"num_key_value_heads":4,"head_dim":128,"max_position_embeddings":524288,"hidden_act":"silu","num_experts":128,"num_local_experts":128,"rms_norm_eps":1e-06}}
ministral {"rotary":true,"kinds":["sliding_attention"],"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":4096,"rms_norm_eps":1e-06}}
ministral3 {"rotary":true,"rope":{"type":"yarn","rope_theta":1000000.0,"factor":16.0,"original_max_position_embeddings":16384,"max_position_embeddings":262144,"beta_fast":32.0,"beta_slow":1.0,"mscale_all_dim":1.0,"mscale":1.0,"llama_4_scaling_beta":0.1,"rope_type":"yarn"},"defaults":{"vocab_size":131072,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":34,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":262144,"hidden_act":"silu","rms_norm_eps":1e-05}}
mistral {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":4096,"rms_norm_eps":1e-06}}
mistral3 {"text":"mistral","defaults":{"tie_word_embeddings":true}}
mistral4 {"rotary":true,"rope":{"type":"yarn","rope_theta":10000.0,"factor":128.0,"original_max_position_embeddings":8192,"max_position_embeddings":1048576,"beta_fast":32.0,"beta_slow":1.0,"mscale_all_dim":1.0,"mscale":1.0,"llama_4_scaling_beta":0.1,"partial_rotary_factor":0.5,"rope_type":"yarn"},"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":131072,"hidden_size":4096,"intermediate_size":12288,"num_hidden_layers":36,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":1048576,"hidden_act":"silu","num_local_experts":128,"n_routed_experts":128,"kv_lora_rank":256,"qk_nope_head_dim":64,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
mistral_large4 {"text":"mistral_large4_text"}
mistral_large4_text {"rotary":true,"rope":{"rope_type":"yarn","rope_theta":10000.0,"factor":2048.0,"original_max_position_embeddings":512,"beta_fast":32.0,"beta_slow":1.0,"attention_factor":1.0},"kinds":["indexed_attention"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":204800,"hidden_size":6144,"intermediate_size":24576,"num_hidden_layers":72,"num_attention_heads":64,"num_key_value_heads":64,"head_dim":64,"max_position_embeddings":1048576,"hidden_act":"silu","num_local_experts":128,"n_routed_experts":128,"kv_lora_rank":512,"qk_nope_head_dim":64,"qk_rope_head_dim":64,"rms_norm_eps":1e-05}}
mixtral {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","num_experts":8,"num_local_experts":8,"rms_norm_eps":1e-05}}
mllama {"text":"mllama_text_model"}
mllama_text_model {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":128256,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":40,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","rms_norm_eps":1e-05}}
mobilebert {"defaults":{"vocab_size":30522,"hidden_size":512,"intermediate_size":512,"num_hidden_layers":24,"num_attention_heads":4,"max_position_embeddings":512,"hidden_act":"relu","tie_word_embeddings":true}}
modernbert {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"default","rope_theta":160000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":50368,"hidden_size":768,"intermediate_size":1152,"num_hidden_layers":22,"num_attention_heads":12,"max_position_embeddings":8192,"hidden_activation":"gelu","tie_word_embeddings":true}}
modernbert-decoder {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"default","rope_theta":160000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":50368,"hidden_size":768,"intermediate_size":1152,"num_hidden_layers":22,"num_attention_heads":12,"max_position_embeddings":8192,"hidden_activation":"gelu","tie_word_embeddings":true}}
modernvbert {"text":"modernbert"}
molmo2 {"text":"molmo2_text"}
molmo2_text {"rotary":true,"defaults":{"vocab_size":151936,"hidden_size":4096,"intermediate_size":12288,"num_hidden_layers":36,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":36864,"hidden_act":"silu","rms_norm_eps":1e-06}}
moonshine {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.9,"rope_type":"default"},"aliases":{"num_hidden_layers":"decoder_num_hidden_layers","num_attention_heads":"decoder_num_attention_heads","num_key_value_heads":"decoder_num_key_value_heads","hidden_act":"decoder_hidden_act"},"defaults":{"vocab_size":32768,"hidden_size":288,"intermediate_size":1152,"num_hidden_layers":6,"num_attention_heads":8,"max_position_embeddings":512,"hidden_act":"silu","tie_word_embeddings":true,"is_encoder_decoder":true}}
moonshine_streaming {"rotary":true,"rope":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":0.8},"defaults":{"vocab_size":32768,"hidden_size":320,"intermediate_size":1280,"num_hidden_layers":6,"num_attention_heads":8,"max_position_embeddings":4096,"hidden_act":"silu","is_encoder_decoder":true}}
moshi {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":3000,"hidden_act":"silu","sliding_window":3000,"rms_norm_eps":1e-08}}
moss_transcribe_diarize {"text":"qwen3","defaults":{"tie_word_embeddings":true}}
mpnet {"defaults":{"vocab_size":30527,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
mpt {"aliases":{"hidden_size":"d_model","num_hidden_layers":"n_layers","num_attention_heads":"n_heads"},"defaults":{"vocab_size":50368,"hidden_size":2048,"num_hidden_layers":24,"num_attention_heads":16,"tie_word_embeddings":true}}
mra {"defaults":{"vocab_size":50265,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
mt5 {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads","head_dim":"d_kv"},"defaults":{"vocab_size":250112,"hidden_size":512,"num_hidden_layers":8,"num_attention_heads":6,"head_dim":64,"tie_word_embeddings":true,"is_encoder_decoder":true}}
muse_glimmer {"text":"muse_glimmer_text"}
muse_glimmer_text {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":202048,"hidden_size":6656,"intermediate_size":19968,"num_hidden_layers":52,"num_attention_heads":32,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":131072,"hidden_activation":"silu","sliding_window":2048,"rms_norm_eps":1e-05}}
muse_spark {"text":"muse_spark_text"}
muse_spark_text {"rotary":true,"rope":{"rope_type":"default","rope_theta":500000.0},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":202048,"hidden_size":8192,"intermediate_size":16384,"num_hidden_layers":62,"num_attention_heads":128,"num_key_value_heads":16,"head_dim":64,"max_position_embeddings":1048576,"hidden_act":"silu","sliding_window":2048,"num_local_experts":256,"rms_norm_eps":1e-05}}
musicflamingo {"text":"qwen2","rotary":true,"rope":{"rope_theta":1200.0,"partial_rotary_factor":0.2,"rope_type":"default"}}
musicgen {}
musicgen_melody {}
mvp {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50267,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
nanochat {"rotary":true,"defaults":{"vocab_size":50304,"hidden_size":768,"intermediate_size":8192,"num_hidden_layers":12,"num_attention_heads":6,"max_position_embeddings":2048,"hidden_act":"relu2","rms_norm_eps":1e-06}}
nemo_speechlm {"text":"nemotron_h","stateful":true}
nemotron {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"defaults":{"vocab_size":256000,"hidden_size":6144,"intermediate_size":24576,"num_hidden_layers":32,"num_attention_heads":48,"max_position_embeddings":4096,"hidden_act":"relu2"}}
nemotron_h {"stateful":true,"kinds":["full_attention","linear_attention","mlp","moe"],"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":131072,"hidden_size":4096,"intermediate_size":21504,"num_attention_heads":32,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":4096,"num_local_experts":8,"n_routed_experts":8}}
nemotron_h_omni {"text":"nemotron_h","stateful":true}
neomme {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":1.0},"full_attention":{"rope_type":"default","rope_theta":1000000.0,"partial_rotary_factor":0.25}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":131072,"hidden_size":1024,"intermediate_size":3584,"num_hidden_layers":17,"num_attention_heads":16,"num_key_value_heads":4,"head_dim":64,"max_position_embeddings":16384,"hidden_act":"relu2","tie_word_embeddings":true,"sliding_window":256}}
nllb-moe {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":128112,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"relu","tie_word_embeddings":true,"is_encoder_decoder":true,"num_experts":128}}
nomic_bert {"rotary":true,"rope":{"rope_theta":1000.0,"rope_type":"default"},"defaults":{"vocab_size":30528,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":2048,"hidden_act":"silu","tie_word_embeddings":true}}
nystromformer {"defaults":{"vocab_size":30000,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":510,"hidden_act":"gelu_new","tie_word_embeddings":true}}
olmo {"rotary":true,"defaults":{"vocab_size":50304,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu"}}
olmo2 {"rotary":true,"defaults":{"vocab_size":50304,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","rms_norm_eps":1e-05}}
olmo3 {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":500000.0},"full_attention":{"rope_type":"default","rope_theta":500000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":50304,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"silu","sliding_window":4096,"rms_norm_eps":1e-05}}
olmo_hybrid {"rotary":true,"stateful":true,"kinds":["full_attention","linear_attention"],"defaults":{"vocab_size":100352,"hidden_size":3840,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":30,"max_position_embeddings":65536,"hidden_act":"silu","rms_norm_eps":1e-06}}
olmoe {"rotary":true,"aliases":{"num_local_experts":"num_experts"},"defaults":{"vocab_size":50304,"hidden_size":2048,"intermediate_size":2048,"num_hidden_layers":16,"num_attention_heads":16,"max_position_embeddings":4096,"hidden_act":"silu","num_experts":64,"num_local_experts":64,"rms_norm_eps":1e-05}}
openai-gpt {"aliases":{"hidden_size":"n_embd","num_hidden_layers":"n_layer","num_attention_heads":"n_head","max_position_embeddings":"n_positions"},"defaults":{"vocab_size":40478,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"tie_word_embeddings":true}}
openai_privacy_filter {"rotary":true,"rope":{"rope_type":"yarn","factor":32.0,"beta_fast":32.0,"beta_slow":1.0,"truncate":false,"original_max_position_embeddings":4096,"rope_theta":150000.0},"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":200064,"hidden_size":640,"intermediate_size":640,"num_hidden_layers":8,"num_attention_heads":14,"num_key_value_heads":2,"head_dim":64,"max_position_embeddings":131072,"attention_bias":true,"sliding_window":128,"num_experts":128,"num_local_experts":128,"rms_norm_eps":1e-05}}
opt {"defaults":{"vocab_size":50272,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":2048,"activation_function":"relu","tie_word_embeddings":true}}
ovis2 {"text":"qwen2","defaults":{"vocab_size":151643,"hidden_size":1536,"tie_word_embeddings":true}}
paddleocr_vl {"text":"paddleocr_vl_text","defaults":{"tie_word_embeddings":true}}
paddleocr_vl_text {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":103424,"hidden_size":1024,"intermediate_size":3072,"num_hidden_layers":18,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","tie_word_embeddings":true,"rms_norm_eps":1e-05}}
paligemma {"text":"gemma","defaults":{"vocab_size":257152,"hidden_size":2048,"tie_word_embeddings":true}}
pegasus {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50265,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
pegasus_x {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":96103,"hidden_size":1024,"num_hidden_layers":16,"num_attention_heads":16,"max_position_embeddings":16384,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
perceiver {"defaults":{"vocab_size":262,"max_position_embeddings":2048,"hidden_act":"gelu"}}
perception_lm {"text":"llama"}
persimmon {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"defaults":{"vocab_size":262144,"hidden_size":4096,"intermediate_size":16384,"num_hidden_layers":36,"num_attention_heads":64,"max_position_embeddings":16384,"hidden_act":"relu2"}}
phi {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"defaults":{"vocab_size":51200,"hidden_size":2048,"intermediate_size":8192,"num_hidden_layers":24,"num_attention_heads":32,"max_position_embeddings":2048,"hidden_act":"gelu_new"}}
phi3 {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":1.0,"rope_type":"default"},"defaults":{"vocab_size":32064,"hidden_size":3072,"intermediate_size":8192,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":4096,"hidden_act":"silu","rms_norm_eps":1e-05}}
phi4_multimodal {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":1.0,"rope_type":"default"},"defaults":{"vocab_size":200064,"hidden_size":3072,"intermediate_size":8192,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","rms_norm_eps":1e-05}}
phimoe {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":32064,"hidden_size":4096,"intermediate_size":6400,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","num_local_experts":16,"rms_norm_eps":1e-05}}
pi0 {}
pix2struct {"text":"pix2struct_text_model","defaults":{"is_encoder_decoder":true}}
pix2struct_text_model {"aliases":{"num_hidden_layers":"num_layers","num_attention_heads":"num_heads"},"defaults":{"vocab_size":50244,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12}}
plbart {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50005,"hidden_size":768,"num_hidden_layers":6,"num_attention_heads":12,"max_position_embeddings":1024,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
pop2piano {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads"},"defaults":{"vocab_size":2400,"hidden_size":512,"num_hidden_layers":6,"num_attention_heads":8,"tie_word_embeddings":true,"is_encoder_decoder":true}}
pp_chart2table {"text":"qwen2","defaults":{"tie_word_embeddings":true}}
pp_formulanet {"text":"pp_formulanet_text","defaults":{"is_encoder_decoder":true}}
pp_formulanet_text {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":50000,"hidden_size":512,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":2560,"activation_function":"gelu","is_encoder_decoder":true}}
prophetnet {"aliases":{"num_attention_heads":"num_encoder_attention_heads"},"defaults":{"vocab_size":30522,"hidden_size":1024,"num_attention_heads":16,"max_position_embeddings":512,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
qianfan_ocr {"text":"qwen3"}
qwen2 {"rotary":true,"defaults":{"vocab_size":151936,"hidden_size":4096,"intermediate_size":22016,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":4096,"use_sliding_window":false,"max_window_layers":28,"rms_norm_eps":1e-06}}
qwen2_5_omni {}
qwen2_5_omni_text {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":152064,"hidden_size":3584,"intermediate_size":18944,"num_hidden_layers":28,"num_attention_heads":28,"num_key_value_heads":4,"max_position_embeddings":32768,"hidden_act":"silu","tie_word_embeddings":true,"sliding_window":32768,"use_sliding_window":false,"max_window_layers":28,"rms_norm_eps":1e-06}}
qwen2_5_omni_thinker {"text":"qwen2_5_omni_text"}
qwen2_5_vl {"text":"qwen2_5_vl_text"}
qwen2_5_vl_text {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":152064,"hidden_size":8192,"intermediate_size":29568,"num_hidden_layers":80,"num_attention_heads":64,"num_key_value_heads":8,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":4096,"use_sliding_window":false,"max_window_layers":80,"rms_norm_eps":1e-05}}
qwen2_audio {"text":"qwen2"}
qwen2_moe {"rotary":true,"defaults":{"vocab_size":151936,"hidden_size":2048,"intermediate_size":5632,"num_hidden_layers":24,"num_attention_heads":16,"num_key_value_heads":16,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":4096,"use_sliding_window":false,"max_window_layers":28,"num_experts":60,"rms_norm_eps":1e-06}}
qwen2_vl {"text":"qwen2_vl_text"}
qwen2_vl_text {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":152064,"hidden_size":8192,"intermediate_size":29568,"num_hidden_layers":80,"num_attention_heads":64,"num_key_value_heads":8,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":4096,"use_sliding_window":false,"max_window_layers":80,"rms_norm_eps":1e-05}}
qwen3 {"rotary":true,"defaults":{"vocab_size":151936,"hidden_size":4096,"intermediate_size":22016,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"head_dim":128,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":4096,"use_sliding_window":false,"max_window_layers":28,"rms_norm_eps":1e-06}}
qwen3_5 {"text":"qwen3_5_text","stateful":true}
qwen3_5_moe {"text":"qwen3_5_moe_text","stateful":true}
qwen3_5_moe_text {"rotary":true,"stateful":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.25,"rope_type":"default"},"kinds":["full_attention","linear_attention"],"defaults":{"vocab_size":248320,"hidden_size":2048,"num_hidden_layers":40,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"max_position_embeddings":32768,"hidden_act":"silu","num_experts":256,"rms_norm_eps":1e-06}}
qwen3_5_text {"rotary":true,"stateful":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.25,"rope_type":"default"},"kinds":["full_attention","linear_attention"],"defaults":{"vocab_size":248320,"hidden_size":4096,"intermediate_size":12288,"num_hidden_layers":32,"num_attention_heads":16,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":32768,"hidden_act":"silu","rms_norm_eps":1e-06}}
qwen3_asr {"text":"qwen3","defaults":{"tie_word_embeddings":true}}
qwen3_moe {"rotary":true,"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":151936,"hidden_size":2048,"intermediate_size":6144,"num_hidden_layers":24,"num_attention_heads":32,"num_key_value_heads":4,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":4096,"use_sliding_window":false,"rms_norm_eps":1e-06}}
qwen3_next {"rotary":true,"stateful":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.25,"rope_type":"default"},"kinds":["full_attention","linear_attention"],"defaults":{"vocab_size":151936,"hidden_size":2048,"intermediate_size":5632,"num_hidden_layers":48,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"max_position_embeddings":32768,"hidden_act":"silu","num_experts":512,"rms_norm_eps":1e-06}}
qwen3_omni_moe {}
qwen3_omni_moe_text {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"defaults":{"vocab_size":3584,"hidden_size":2048,"intermediate_size":18944,"num_hidden_layers":28,"num_attention_heads":28,"num_key_value_heads":4,"max_position_embeddings":32768,"hidden_act":"silu","num_experts":128,"rms_norm_eps":1e-06}}
qwen3_omni_moe_thinker {"text":"qwen3_omni_moe_text"}
qwen3_vl {"text":"qwen3_vl_text"}
qwen3_vl_moe {"text":"qwen3_vl_moe_text"}
qwen3_vl_moe_text {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"aliases":{"num_experts":"num_local_experts"},"defaults":{"vocab_size":151936,"hidden_size":2048,"intermediate_size":5632,"num_hidden_layers":24,"num_attention_heads":16,"num_key_value_heads":16,"max_position_embeddings":128000,"hidden_act":"silu","tie_word_embeddings":true,"rms_norm_eps":1e-06}}
qwen3_vl_text {"rotary":true,"rope":{"rope_theta":500000.0,"rope_type":"default"},"defaults":{"vocab_size":151936,"hidden_size":4096,"intermediate_size":22016,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"head_dim":128,"max_position_embeddings":128000,"hidden_act":"silu","rms_norm_eps":1e-06}}
qwen4_exp {"text":"qwen4_exp_text","stateful":true}
qwen4_exp_text {"rotary":true,"stateful":true,"kinds":["indexed_attention","linear_attention"],"defaults":{"vocab_size":248320,"hidden_size":2048,"num_hidden_layers":40,"num_attention_heads":16,"num_key_value_heads":2,"head_dim":256,"max_position_embeddings":32768,"hidden_act":"silu","num_experts":512,"rms_norm_eps":1e-06}}
recurrent_gemma {"rotary":true,"stateful":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.5,"rope_type":"default"},"kinds":["linear_attention","sliding_attention"],"aliases":{"sliding_window":"attention_window_size"},"defaults":{"vocab_size":256000,"hidden_size":2560,"intermediate_size":7680,"num_hidden_layers":26,"num_attention_heads":10,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":2048,"rms_norm_eps":1e-06}}
reformer {"defaults":{"vocab_size":320,"hidden_size":256,"num_attention_heads":12,"max_position_embeddings":4096,"hidden_act":"relu"}}
rembert {"defaults":{"vocab_size":250300,"hidden_size":1152,"intermediate_size":4608,"num_hidden_layers":32,"num_attention_heads":18,"max_position_embeddings":512,"hidden_act":"gelu"}}
roberta {"defaults":{"vocab_size":50265,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
roberta-prelayernorm {"defaults":{"vocab_size":50265,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
roc_bert {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
roformer {"defaults":{"vocab_size":50000,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":1536,"hidden_act":"gelu","tie_word_embeddings":true}}
rwkv {"stateful":true,"aliases":{"max_position_embeddings":"context_length"},"defaults":{"vocab_size":50277,"hidden_size":4096,"num_hidden_layers":32,"max_position_embeddings":1024}}
seamless_m4t {"aliases":{"num_hidden_layers":"decoder_layers","num_attention_heads":"decoder_attention_heads"},"defaults":{"vocab_size":256102,"hidden_size":1024,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":1024,"activation_function":"relu","tie_word_embeddings":true,"is_encoder_decoder":true}}
seamless_m4t_v2 {"aliases":{"num_hidden_layers":"decoder_layers","num_attention_heads":"decoder_attention_heads"},"defaults":{"vocab_size":256102,"hidden_size":1024,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":4096,"activation_function":"relu","tie_word_embeddings":true,"is_encoder_decoder":true}}
seed_oss {"rotary":true,"defaults":{"vocab_size":155136,"hidden_size":4096,"intermediate_size":27648,"num_hidden_layers":64,"num_attention_heads":80,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":524288,"hidden_act":"silu","attention_bias":true,"rms_norm_eps":1e-06}}
shieldgemma2 {"text":"gemma3_text"}
smollm3 {"rotary":true,"rope":{"rope_theta":2000000.0,"rope_type":"default"},"defaults":{"vocab_size":128256,"hidden_size":2048,"intermediate_size":11008,"num_hidden_layers":36,"num_attention_heads":16,"num_key_value_heads":4,"max_position_embeddings":32768,"hidden_act":"silu","tie_word_embeddings":true,"use_sliding_window":false,"rms_norm_eps":1e-06}}
smolvlm {"text":"llama"}
solar_open {"rotary":true,"rope":{"rope_theta":1000000.0,"rope_type":"default"},"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"vocab_size":196608,"hidden_size":4096,"num_hidden_layers":48,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","num_local_experts":128,"n_routed_experts":128,"rms_norm_eps":1e-05}}
speech-encoder-decoder {"defaults":{"is_encoder_decoder":true}}
speech_to_text {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":10000,"hidden_size":256,"num_hidden_layers":12,"num_attention_heads":4,"activation_function":"relu","tie_word_embeddings":true,"is_encoder_decoder":true}}
speecht5 {"aliases":{"num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads"},"defaults":{"vocab_size":81,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"hidden_act":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
squeezebert {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
stablelm {"rotary":true,"rope":{"rope_theta":10000.0,"partial_rotary_factor":0.25,"rope_type":"default"},"defaults":{"vocab_size":50304,"hidden_size":2560,"intermediate_size":6912,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":32,"max_position_embeddings":4096,"hidden_act":"silu"}}
starcoder2 {"rotary":true,"defaults":{"vocab_size":49152,"hidden_size":3072,"intermediate_size":12288,"num_hidden_layers":30,"num_attention_heads":24,"num_key_value_heads":2,"max_position_embeddings":4096,"hidden_act":"gelu_pytorch_tanh","tie_word_embeddings":true}}
step3p5 {"rotary":true,"rope":{"full_attention":{"rope_type":"default","rope_theta":10000.0}},"aliases":{"num_local_experts":"n_routed_experts","moe_num_experts":"n_routed_experts"},"defaults":{"vocab_size":128815,"hidden_size":4096,"intermediate_size":11264,"num_hidden_layers":45,"num_attention_heads":64,"num_key_value_heads":8,"head_dim":128,"max_position_embeddings":128000,"hidden_act":"silu","num_local_experts":288,"n_routed_experts":288,"moe_num_experts":288,"rms_norm_eps":1e-05}}
step3p7 {"text":"step3p5"}
switch_transformers {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads"},"defaults":{"vocab_size":32128,"hidden_size":768,"num_hidden_layers":12,"num_attention_heads":12,"tie_word_embeddings":true,"is_encoder_decoder":true,"num_experts":8}}
t5 {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads","head_dim":"d_kv"},"defaults":{"vocab_size":32128,"hidden_size":512,"num_hidden_layers":6,"num_attention_heads":8,"head_dim":64,"is_encoder_decoder":true,"tie_word_embeddings":true}}
t5gemma {"defaults":{"vocab_size":256000,"tie_word_embeddings":true,"is_encoder_decoder":true}}
t5gemma2 {"defaults":{"tie_word_embeddings":true,"is_encoder_decoder":true}}
tapas {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":1024,"hidden_act":"gelu","tie_word_embeddings":true}}
trocr {"aliases":{"hidden_size":"d_model","num_hidden_layers":"decoder_layers","num_attention_heads":"decoder_attention_heads"},"defaults":{"vocab_size":50265,"hidden_size":1024,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":512,"activation_function":"gelu","tie_word_embeddings":true}}
udop {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads"},"defaults":{"vocab_size":33201,"hidden_size":1024,"num_hidden_layers":24,"num_attention_heads":16,"tie_word_embeddings":true,"is_encoder_decoder":true}}
ultrabert {"rotary":true,"rope":{"sliding_attention":{"rope_type":"default","rope_theta":10000.0},"full_attention":{"rope_type":"default","rope_theta":2560000.0}},"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":11008,"num_hidden_layers":32,"num_attention_heads":32,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":128,"rms_norm_eps":1e-06}}
ultravbert {"text":"ultrabert"}
umt5 {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"num_heads","head_dim":"d_kv"},"defaults":{"vocab_size":250112,"hidden_size":512,"num_hidden_layers":8,"num_attention_heads":6,"head_dim":64,"is_encoder_decoder":true,"tie_word_embeddings":true}}
unlimited_ocr {"text":"unlimited_ocr_text"}
unlimited_ocr_text {"rotary":true,"kinds":["reference_sliding_attention"],"aliases":{"num_experts":"n_routed_experts"},"defaults":{"vocab_size":129280,"hidden_size":1280,"intermediate_size":6848,"num_hidden_layers":12,"num_attention_heads":10,"num_key_value_heads":10,"max_position_embeddings":32768,"hidden_act":"silu","sliding_window":128,"num_experts":64,"n_routed_experts":64,"rms_norm_eps":1e-06}}
vaultgemma {"rotary":true,"kinds":["full_attention","sliding_attention"],"defaults":{"vocab_size":256000,"hidden_size":2304,"intermediate_size":9216,"num_hidden_layers":26,"num_attention_heads":8,"num_key_value_heads":4,"head_dim":256,"max_position_embeddings":8192,"hidden_activation":"gelu_pytorch_tanh","tie_word_embeddings":true,"sliding_window":4096,"rms_norm_eps":1e-06}}
vibevoice {"text":"qwen2"}
vibevoice_asr {"text":"qwen2"}
video_llama_3 {"text":"qwen2"}
video_llava {"text":"llama"}
vipllava {"text":"llama"}
vision-encoder-decoder {"defaults":{"is_encoder_decoder":true}}
voxtral {"text":"llama"}
voxtral_realtime {"text":"voxtral_realtime_text","defaults":{"tie_word_embeddings":true}}
voxtral_realtime_text {"rotary":true,"defaults":{"vocab_size":32000,"hidden_size":4096,"intermediate_size":14336,"num_hidden_layers":32,"num_attention_heads":32,"num_key_value_heads":8,"max_position_embeddings":131072,"hidden_act":"silu","sliding_window":4096,"rms_norm_eps":1e-06}}
whisper {"aliases":{"hidden_size":"d_model","num_hidden_layers":"encoder_layers","num_attention_heads":"encoder_attention_heads","num_key_value_heads":"encoder_attention_heads"},"defaults":{"vocab_size":51865,"hidden_size":384,"num_hidden_layers":4,"num_attention_heads":6,"num_key_value_heads":6,"activation_function":"gelu","tie_word_embeddings":true,"is_encoder_decoder":true}}
xglm {"aliases":{"hidden_size":"d_model","num_hidden_layers":"num_layers","num_attention_heads":"attention_heads"},"defaults":{"vocab_size":256008,"hidden_size":1024,"num_hidden_layers":24,"num_attention_heads":16,"max_position_embeddings":2048,"activation_function":"gelu","tie_word_embeddings":true}}
xlm {"aliases":{"hidden_size":"emb_dim","num_hidden_layers":"n_layers","num_attention_heads":"n_heads"},"defaults":{"vocab_size":30145,"hidden_size":2048,"num_hidden_layers":12,"num_attention_heads":16,"max_position_embeddings":512,"tie_word_embeddings":true}}
xlm-roberta {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
xlm-roberta-xl {"defaults":{"vocab_size":250880,"hidden_size":2560,"intermediate_size":10240,"num_hidden_layers":36,"num_attention_heads":32,"max_position_embeddings":514,"hidden_act":"gelu","tie_word_embeddings":true}}
xlnet {"aliases":{"hidden_size":"d_model","num_hidden_layers":"n_layer","num_attention_heads":"n_head"},"defaults":{"vocab_size":32000,"hidden_size":1024,"num_hidden_layers":24,"num_attention_heads":16,"tie_word_embeddings":true}}
xlstm {"stateful":true,"defaults":{"vocab_size":50304,"hidden_size":4096,"num_hidden_layers":32}}
xmod {"defaults":{"vocab_size":30522,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":512,"hidden_act":"gelu","tie_word_embeddings":true}}
yoso {"defaults":{"vocab_size":50265,"hidden_size":768,"intermediate_size":3072,"num_hidden_layers":12,"num_attention_heads":12,"max_position_embeddings":4096,"hidden_act":"gelu","tie_word_embeddings":true}}
youtu {"rotary":true,"defaults":{"vocab_size":128256,"hidden_size":2048,"intermediate_size":6144,"num_hidden_layers":32,"num_attention_heads":16,"num_key_value_heads":16,"max_position_embeddings":131072,"hidden_act":"silu","tie_word_embeddings":true,"kv_lora_rank":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06}}
zamba {"stateful":true,"kinds":["hybrid","linear_attention"],"aliases":{"head_dim":"attention_head_dim"},"defaults":{"vocab_size":32000,"hidden_size":3712,"intermediate_size":14848,"num_hidden_layers":76,"num_attention_heads":16,"num_key_value_heads":16,"max_position_embeddings":4096,"hidden_act":"gelu","tie_word_embeddings":true,"rms_norm_eps":1e-05}}
zamba2 {"rotary":true,"stateful":true,"kinds":["hybrid","linear_attention"],"aliases":{"head_dim":"attention_head_dim"},"defaults":{"vocab_size":32000,"hidden_size":2560,"num_hidden_layers":54,"num_attention_heads":32,"max_position_embeddings":4096,"hidden_act":"gelu","tie_word_embeddings":true,"rms_norm_eps":1e-05}}
zaya {"rotary":true,"stateful":true,"rope":{"hybrid":{"rope_type":"default","rope_theta":5000000.0,"partial_rotary_factor":0.5},"hybrid_sliding":{"rope_type":"default","rope_theta":10000.0,"partial_rotary_factor":0.5}},"kinds":["hybrid"],"defaults":{"vocab_size":262272,"hidden_size":2048,"num_hidden_layers":40,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":128,"max_position_embeddings":131072,"hidden_act":"silu","tie_word_embeddings":true,"num_experts":16,"rms_norm_eps":1e-05}}
"""
