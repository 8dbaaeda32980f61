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
def known_model_types() -> tuple[str, ...]:
    """Every model type of the table, sorted."""
    return tuple(sorted(_lines()))


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
afmoe {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2048,"intermediate_size":6144,"max_position_embeddings":16384,"num_attention_heads":16,"num_experts":64,"num_hidden_layers":32,"rms_norm_eps":1e-05,"sliding_window":1024,"vocab_size":200192},"kinds":["full_attention","sliding_attention"],"rotary":true}
albert {"defaults":{"hidden_act":"gelu_new","hidden_size":4096,"intermediate_size":16384,"max_position_embeddings":512,"num_attention_heads":64,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30000}}
apertus {"defaults":{"hidden_act":"xielu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":65536,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"vocab_size":131072},"rope":{"factor":8.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_theta":12000000.0,"rope_type":"llama3"},"rotary":true}
arcee {"defaults":{"hidden_act":"relu2","hidden_size":2560,"intermediate_size":18432,"max_position_embeddings":4096,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"vocab_size":32000},"rotary":true}
aria {"text":"aria_text"}
aria_text {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":4096,"max_position_embeddings":2048,"moe_num_experts":8,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
audioflamingo3 {"text":"qwen2"}
axk1 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":7168,"intermediate_size":18432,"kv_lora_rank":512,"max_position_embeddings":32768,"n_routed_experts":192,"num_attention_heads":64,"num_hidden_layers":61,"num_key_value_heads":64,"num_local_experts":192,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"vocab_size":163840},"rotary":true}
axk2 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":2048,"intermediate_size":5120,"kv_lora_rank":128,"max_position_embeddings":131072,"n_routed_experts":128,"num_attention_heads":32,"num_hidden_layers":48,"num_key_value_heads":32,"num_local_experts":128,"qk_nope_head_dim":64,"qk_rope_head_dim":32,"rms_norm_eps":1e-06,"vocab_size":163840},"kinds":["indexed_attention"],"rotary":true}
aya_vision {"defaults":{"tie_word_embeddings":true},"text":"cohere2"}
bailing_hybrid {"aliases":{"max_position_embeddings":"model_max_length","num_local_experts":"num_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2560,"intermediate_size":6144,"kv_lora_rank":512,"num_attention_heads":32,"num_experts":512,"num_hidden_layers":42,"num_key_value_heads":32,"num_local_experts":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"vocab_size":157184},"kinds":["full_attention","linear_attention"],"rope":{"rope_theta":6000000.0,"rope_type":"default"},"rotary":true,"stateful":true}
bamba {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":262144,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":128000},"kinds":["linear_attention"],"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true,"stateful":true}
bart {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
beam {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":5120,"intermediate_size":20480,"max_position_embeddings":8192,"num_attention_heads":48,"num_experts":256,"num_hidden_layers":52,"num_key_value_heads":8,"rms_norm_eps":1e-06,"sliding_window":512,"vocab_size":151936},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":null,"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
bert {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
bert-generation {"defaults":{"hidden_act":"gelu","hidden_size":1024,"intermediate_size":4096,"max_position_embeddings":512,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":50358}}
big_bird {"defaults":{"hidden_act":"gelu_new","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":4096,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50358}}
bigbird_pegasus {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu_new","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":4096,"num_attention_heads":16,"num_hidden_layers":16,"tie_word_embeddings":true,"vocab_size":96103}}
biogpt {"defaults":{"hidden_act":"gelu","hidden_size":1024,"intermediate_size":4096,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":42384}}
bitnet {"defaults":{"hidden_act":"relu2","hidden_size":2560,"intermediate_size":6912,"max_position_embeddings":2048,"num_attention_heads":20,"num_hidden_layers":30,"num_key_value_heads":5,"rms_norm_eps":1e-05,"vocab_size":128256},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
blenderbot {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":2560,"is_encoder_decoder":true,"max_position_embeddings":128,"num_attention_heads":32,"num_hidden_layers":2,"tie_word_embeddings":true,"vocab_size":8008}}
blenderbot-small {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":512,"is_encoder_decoder":true,"max_position_embeddings":512,"num_attention_heads":16,"num_hidden_layers":8,"tie_word_embeddings":true,"vocab_size":50265}}
blip {"defaults":{"tie_word_embeddings":true},"text":"blip_text_model"}
blip-2 {"text":"opt"}
blip_text_model {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":8,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30524}}
bloom {"aliases":{"num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"hidden_size":64,"num_attention_heads":8,"num_hidden_layers":2,"tie_word_embeddings":true,"vocab_size":250880}}
blt {"defaults":{"max_position_embeddings":4096,"vocab_size":260},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
bros {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"vocab_size":30522}}
camembert {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
canary {"defaults":{"is_encoder_decoder":true,"tie_word_embeddings":true,"vocab_size":16384}}
canine {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":16384,"num_attention_heads":12,"num_hidden_layers":12}}
chameleon {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":4096,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":32,"rms_norm_eps":1e-05,"vocab_size":65536},"rotary":true}
codegen {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"activation_function":"gelu_new","hidden_size":4096,"max_position_embeddings":2048,"num_attention_heads":16,"num_hidden_layers":28,"vocab_size":50400}}
cohere {"defaults":{"hidden_act":"silu","hidden_size":8192,"intermediate_size":22528,"max_position_embeddings":8192,"num_attention_heads":64,"num_hidden_layers":40,"tie_word_embeddings":true,"vocab_size":256000},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
cohere2 {"defaults":{"hidden_act":"silu","hidden_size":8192,"intermediate_size":22528,"max_position_embeddings":8192,"num_attention_heads":64,"num_hidden_layers":40,"sliding_window":4096,"tie_word_embeddings":true,"vocab_size":256000},"kinds":["full_attention","sliding_attention"],"rotary":true}
cohere2_moe {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":8192,"intermediate_size":22528,"max_position_embeddings":8192,"num_attention_heads":64,"num_experts":8,"num_hidden_layers":40,"sliding_window":4096,"tie_word_embeddings":true,"vocab_size":256000},"kinds":["full_attention","sliding_attention"]}
cohere2_vision {"defaults":{"tie_word_embeddings":true},"text":"cohere2"}
cohere_asr {"defaults":{"attention_bias":true,"hidden_act":"relu","hidden_size":1024,"intermediate_size":4096,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":8,"num_hidden_layers":8,"vocab_size":16384}}
cohere_compass {"text":"cohere_compass_text"}
cohere_compass_text {"defaults":{"hidden_act":"silu","hidden_size":8192,"intermediate_size":22528,"max_position_embeddings":8192,"num_attention_heads":64,"num_hidden_layers":40,"sliding_window":4096,"tie_word_embeddings":true,"vocab_size":256000},"kinds":["full_attention"],"rotary":true}
colmodernvbert {}
colpali {}
convbert {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
cosmos3_edge {"text":"cosmos3_edge_text"}
cosmos3_edge_text {"defaults":{"head_dim":128,"hidden_act":"relu2","hidden_size":2048,"intermediate_size":9216,"max_position_embeddings":131072,"num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":131072},"rope":{"mrope_section":[24,20,20],"rope_theta":100000000.0,"rope_type":"default"},"rotary":true}
cosmos3_omni {"text":"qwen3_vl_text"}
cpmant {"defaults":{"hidden_size":4096,"num_attention_heads":32,"num_hidden_layers":48,"tie_word_embeddings":true,"vocab_size":30720}}
ctrl {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"hidden_size":1280,"max_position_embeddings":256,"num_attention_heads":16,"num_hidden_layers":48,"tie_word_embeddings":true,"vocab_size":246534}}
cwm {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":6144,"intermediate_size":21504,"max_position_embeddings":131072,"num_attention_heads":48,"num_hidden_layers":64,"num_key_value_heads":8,"rms_norm_eps":1e-05,"sliding_window":8192,"vocab_size":128256},"kinds":["full_attention","sliding_attention"],"rope":{"factor":16.0,"high_freq_factor":4.0,"low_freq_factor":1.0,"original_max_position_embeddings":8192,"rope_theta":1000000.0,"rope_type":"llama3"},"rotary":true}
data2vec-text {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
dbrx {"aliases":{"hidden_size":"d_model","max_position_embeddings":"max_seq_len","num_attention_heads":"n_heads","num_hidden_layers":"n_layers"},"defaults":{"hidden_size":2048,"max_position_embeddings":2048,"num_attention_heads":16,"num_hidden_layers":24,"vocab_size":32000},"rotary":true}
deberta {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
deberta-v2 {"defaults":{"hidden_act":"gelu","hidden_size":1536,"intermediate_size":6144,"max_position_embeddings":512,"num_attention_heads":24,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":128100}}
deepseek_ocr2 {"text":"deepseek_ocr2_text"}
deepseek_ocr2_text {"aliases":{"num_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"n_routed_experts":64,"num_attention_heads":32,"num_experts":64,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":102400},"rotary":true}
deepseek_v2 {"aliases":{"num_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"kv_lora_rank":512,"max_position_embeddings":2048,"n_routed_experts":64,"num_attention_heads":32,"num_experts":64,"num_hidden_layers":32,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"vocab_size":102400},"rotary":true}
deepseek_v3 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":7168,"intermediate_size":18432,"kv_lora_rank":512,"max_position_embeddings":4096,"n_routed_experts":256,"num_attention_heads":128,"num_hidden_layers":61,"num_key_value_heads":128,"num_local_experts":256,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"vocab_size":129280},"rotary":true}
deepseek_v32 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":7168,"intermediate_size":18432,"kv_lora_rank":512,"max_position_embeddings":163840,"n_routed_experts":256,"num_attention_heads":128,"num_hidden_layers":61,"num_key_value_heads":128,"num_local_experts":256,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"vocab_size":129280},"kinds":["indexed_attention"],"rotary":true}
deepseek_v4 {"aliases":{"intermediate_size":"moe_intermediate_size","num_local_experts":"n_routed_experts"},"defaults":{"head_dim":512,"hidden_act":"silu","hidden_size":4096,"intermediate_size":2048,"max_position_embeddings":1048576,"n_routed_experts":256,"num_attention_heads":64,"num_hidden_layers":43,"num_key_value_heads":1,"num_local_experts":256,"rms_norm_eps":1e-06,"sliding_window":128,"vocab_size":129280},"kinds":["compressed_sparse_attention","heavily_compressed_attention"],"rope":{"compress":{"partial_rotary_factor":0.125,"rope_theta":160000.0,"rope_type":"default"},"main":{"partial_rotary_factor":0.125,"rope_theta":10000.0,"rope_type":"default"}},"rotary":true,"stateful":true}
deepseek_vl {"defaults":{"tie_word_embeddings":true},"text":"llama"}
deepseek_vl_hybrid {"defaults":{"tie_word_embeddings":true},"text":"llama"}
dia {"defaults":{"is_encoder_decoder":true}}
diffllama {"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":8192,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":16,"rms_norm_eps":1e-05,"vocab_size":32000},"rotary":true}
diffusion_gemma {"defaults":{"tie_word_embeddings":true},"text":"diffusion_gemma_text"}
diffusion_gemma_text {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,"intermediate_size":9216,"max_position_embeddings":131072,"num_attention_heads":8,"num_hidden_layers":30,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":512,"tie_word_embeddings":true,"vocab_size":262144},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.25,"rope_theta":1000000.0,"rope_type":"proportional"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
distilbert {"aliases":{"hidden_size":"dim","num_attention_heads":"n_heads","num_hidden_layers":"n_layers"},"defaults":{"hidden_size":768,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":6,"tie_word_embeddings":true,"vocab_size":30522}}
doge {"defaults":{"hidden_act":"silu","hidden_size":1024,"intermediate_size":2048,"max_position_embeddings":2048,"num_attention_heads":8,"num_experts":16384,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32768},"rotary":true}
dots1 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":4608,"intermediate_size":10944,"max_position_embeddings":2048,"max_window_layers":62,"num_attention_heads":32,"num_hidden_layers":62,"num_key_value_heads":32,"rms_norm_eps":1e-06,"sliding_window":4096,"vocab_size":152064},"kinds":["full_attention"],"rotary":true}
dots3_note {"text":"dots3_note_text"}
dots3_note_text {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":256,"hidden_act":"silu","hidden_size":5120,"intermediate_size":13824,"kv_lora_rank":512,"max_position_embeddings":524288,"n_routed_experts":256,"num_attention_heads":128,"num_hidden_layers":46,"num_key_value_heads":128,"num_local_experts":256,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":152064},"kinds":["indexed_attention","sliding_attention"],"rope":{"indexed_attention":{"partial_rotary_factor":0.25,"rope_theta":80000000.0,"rope_type":"default"},"sliding_attention":{"partial_rotary_factor":0.25,"rope_theta":50000.0,"rope_type":"default"}},"rotary":true}
electra {"defaults":{"hidden_act":"gelu","hidden_size":256,"intermediate_size":1024,"max_position_embeddings":512,"num_attention_heads":4,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
emu3 {"text":"emu3_text_model"}
emu3_text_model {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":9216,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":184622},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
encoder-decoder {"defaults":{"is_encoder_decoder":true}}
ernie {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
ernie4_5 {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":1024,"intermediate_size":3072,"max_position_embeddings":131072,"num_attention_heads":16,"num_hidden_layers":18,"num_key_value_heads":2,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":103424},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
ernie4_5_moe {"aliases":{"num_experts":"moe_num_experts"},"defaults":{"hidden_act":"silu","hidden_size":2560,"intermediate_size":12288,"max_position_embeddings":131072,"moe_num_experts":64,"num_attention_heads":20,"num_experts":64,"num_hidden_layers":28,"num_key_value_heads":4,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":103424},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
ernie4_5_vl_moe {"defaults":{"tie_word_embeddings":true},"text":"ernie4_5_vl_moe_text"}
ernie4_5_vl_moe_text {"aliases":{"num_experts":"moe_num_experts"},"defaults":{"hidden_act":"silu","hidden_size":2560,"intermediate_size":12288,"max_position_embeddings":131072,"moe_num_experts":64,"num_attention_heads":20,"num_experts":64,"num_hidden_layers":28,"num_key_value_heads":4,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":103424},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
esm {"defaults":{"hidden_size":768,"intermediate_size":3072,"max_position_embeddings":1026,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true}}
esmc {"defaults":{"hidden_act":"silu","hidden_size":2560,"intermediate_size":6912,"max_position_embeddings":2048,"num_attention_heads":40,"num_hidden_layers":80,"vocab_size":64},"rotary":true}
eurobert {"defaults":{"hidden_act":"silu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":8192,"num_attention_heads":12,"num_hidden_layers":12,"rms_norm_eps":1e-05,"vocab_size":128256},"rotary":true}
evolla {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":8192,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":128256},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
exaone4 {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":16384,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":32,"rms_norm_eps":1e-05,"sliding_window":4096,"vocab_size":102400},"kinds":["full_attention","sliding_attention"],"rotary":true}
exaone4_5 {"text":"exaone4"}
exaone_moe {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":16384,"max_position_embeddings":2048,"num_attention_heads":32,"num_experts":64,"num_hidden_layers":32,"num_key_value_heads":32,"rms_norm_eps":1e-05,"sliding_window":4096,"vocab_size":102400},"kinds":["full_attention","sliding_attention"],"rotary":true}
falcon {"defaults":{"hidden_size":4544,"max_position_embeddings":2048,"num_attention_heads":71,"num_hidden_layers":32,"tie_word_embeddings":true,"vocab_size":65024},"rotary":true}
falcon_h1 {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":8192,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":128000},"kinds":["hybrid"],"rotary":true,"stateful":true}
falcon_mamba {"defaults":{"hidden_act":"silu","hidden_size":768,"num_hidden_layers":32,"tie_word_embeddings":true,"vocab_size":50280},"kinds":["linear_attention"],"stateful":true}
fast_vlm {"text":"qwen2"}
flaubert {"aliases":{"hidden_size":"emb_dim","num_attention_heads":"n_heads","num_hidden_layers":"n_layers"},"defaults":{"hidden_size":2048,"max_position_embeddings":512,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30145}}
flex_olmo {"aliases":{"num_local_experts":"num_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":4096,"num_attention_heads":32,"num_experts":7,"num_hidden_layers":32,"num_local_experts":7,"rms_norm_eps":1e-06,"vocab_size":100352},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
flint {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2048,"intermediate_size":6144,"max_position_embeddings":262144,"num_attention_heads":32,"num_experts":256,"num_hidden_layers":49,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":513,"vocab_size":150144},"kinds":["full_attention","sliding_attention"],"rotary":true}
florence2 {"defaults":{"is_encoder_decoder":true,"tie_word_embeddings":true},"text":"bart"}
fnet {"defaults":{"hidden_act":"gelu_new","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":32000}}
fsmt {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers","vocab_size":"tgt_vocab_size"},"defaults":{"activation_function":"relu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"vocab_size":42024}}
fun_asr_nano {"defaults":{"tie_word_embeddings":true},"text":"qwen3"}
funnel {"aliases":{"hidden_size":"d_model","num_attention_heads":"n_head"},"defaults":{"hidden_act":"gelu_new","hidden_size":768,"num_attention_heads":12,"tie_word_embeddings":true,"vocab_size":30522}}
fuyu {"text":"persimmon"}
gemma {"defaults":{"head_dim":256,"hidden_act":"gelu_pytorch_tanh","hidden_size":3072,"intermediate_size":24576,"max_position_embeddings":8192,"num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":16,"rms_norm_eps":1e-06,"tie_word_embeddings":true,"vocab_size":256000},"rotary":true}
gemma2 {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,"intermediate_size":9216,"max_position_embeddings":8192,"num_attention_heads":8,"num_hidden_layers":26,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":4096,"tie_word_embeddings":true,"vocab_size":256000},"kinds":["full_attention","sliding_attention"],"rotary":true}
gemma3 {"defaults":{"tie_word_embeddings":true},"text":"gemma3_text"}
gemma3_text {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,"intermediate_size":9216,"max_position_embeddings":131072,"num_attention_heads":8,"num_hidden_layers":26,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":4096,"tie_word_embeddings":true,"vocab_size":262208},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"rope_theta":1000000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
gemma3n {"defaults":{"tie_word_embeddings":true},"text":"gemma3n_text"}
gemma3n_text {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2048,"intermediate_size":16384,"max_position_embeddings":32768,"num_attention_heads":8,"num_hidden_layers":35,"num_key_value_heads":2,"rms_norm_eps":1e-06,"sliding_window":512,"tie_word_embeddings":true,"vocab_size":262400},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"rope_theta":1000000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
gemma4 {"defaults":{"tie_word_embeddings":true},"text":"gemma4_text"}
gemma4_assistant {"defaults":{"tie_word_embeddings":true}}
gemma4_text {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,"intermediate_size":9216,"max_position_embeddings":131072,"num_attention_heads":8,"num_hidden_layers":30,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":512,"tie_word_embeddings":true,"vocab_size":262144},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.25,"rope_theta":1000000.0,"rope_type":"proportional"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
gemma4_unified {"defaults":{"tie_word_embeddings":true},"text":"gemma4_unified_text"}
gemma4_unified_assistant {"defaults":{"tie_word_embeddings":true},"text":"gemma4_unified_text"}
gemma4_unified_text {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,"intermediate_size":9216,"max_position_embeddings":262144,"num_attention_heads":8,"num_hidden_layers":30,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":1024,"tie_word_embeddings":true,"vocab_size":262144},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.25,"rope_theta":1000000.0,"rope_type":"proportional"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
git {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":1024,"num_attention_heads":12,"num_hidden_layers":6,"vocab_size":30522}}
glm {"defaults":{"attention_bias":true,"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":13696,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":2,"rms_norm_eps":1.5625e-07,"vocab_size":151552},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
glm4 {"defaults":{"attention_bias":true,"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":13696,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":2,"rms_norm_eps":1.5625e-07,"vocab_size":151552},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
glm46v {"text":"glm4v_text"}
glm4_moe {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":10944,"max_position_embeddings":131072,"n_routed_experts":128,"num_attention_heads":96,"num_hidden_layers":46,"num_key_value_heads":8,"num_local_experts":128,"rms_norm_eps":1e-05,"vocab_size":151552},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
glm4_moe_lite {"aliases":{"head_dim":"qk_rope_head_dim","num_local_experts":"n_routed_experts"},"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":2048,"intermediate_size":10240,"kv_lora_rank":512,"max_position_embeddings":202752,"n_routed_experts":64,"num_attention_heads":20,"num_hidden_layers":47,"num_key_value_heads":20,"num_local_experts":64,"qk_nope_head_dim":192,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":154880},"rotary":true}
glm4v {"text":"glm4v_text"}
glm4v_moe {"text":"glm4v_moe_text"}
glm4v_moe_text {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"attention_bias":true,"hidden_act":"silu","hidden_size":4096,"intermediate_size":10944,"max_position_embeddings":65536,"n_routed_experts":128,"num_attention_heads":96,"num_hidden_layers":46,"num_key_value_heads":8,"num_local_experts":128,"rms_norm_eps":1e-05,"vocab_size":151424},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
glm4v_text {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":13696,"max_position_embeddings":32768,"num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":2,"rms_norm_eps":1e-05,"vocab_size":151552},"rotary":true}
glm5_next {"stateful":true,"text":"glm5_next_text"}
glm5_next_text {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":12288,"kv_lora_rank":512,"max_position_embeddings":1048576,"n_routed_experts":288,"num_attention_heads":64,"num_hidden_layers":45,"num_key_value_heads":64,"num_local_experts":288,"qk_nope_head_dim":256,"rms_norm_eps":1e-05,"vocab_size":154880},"kinds":["indexed_attention","linear_attention"],"stateful":true}
glm_moe_dsa {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":6144,"intermediate_size":12288,"kv_lora_rank":512,"max_position_embeddings":202752,"n_routed_experts":256,"num_attention_heads":64,"num_hidden_layers":78,"num_key_value_heads":64,"num_local_experts":256,"qk_nope_head_dim":192,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":154880},"kinds":["indexed_attention"],"rotary":true}
glm_ocr {"text":"glm_ocr_text"}
glm_ocr_text {"defaults":{"hidden_act":"silu","hidden_size":1024,"intermediate_size":4096,"max_position_embeddings":131072,"num_attention_heads":16,"num_hidden_layers":16,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":59392},"rotary":true}
glmasr {"defaults":{"tie_word_embeddings":true},"text":"llama"}
glmga {"text":"glm4v_text"}
got_ocr2 {"defaults":{"tie_word_embeddings":true},"text":"qwen2"}
gpt-sw3 {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"activation_function":"gelu_new","hidden_size":768,"max_position_embeddings":1024,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50257}}
gpt2 {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"activation_function":"gelu_new","hidden_size":768,"max_position_embeddings":1024,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50257}}
gpt_bigcode {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"activation_function":"gelu_pytorch_tanh","hidden_size":768,"max_position_embeddings":1024,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50257}}
gpt_neo {"aliases":{"num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"activation_function":"gelu_new","hidden_size":2048,"max_position_embeddings":2048,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":50257}}
gpt_neox {"defaults":{"attention_bias":true,"hidden_act":"gelu","hidden_size":6144,"intermediate_size":24576,"max_position_embeddings":2048,"num_attention_heads":64,"num_hidden_layers":44,"vocab_size":50432},"rope":{"partial_rotary_factor":0.25,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
gpt_neox_japanese {"defaults":{"hidden_act":"gelu","hidden_size":2560,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"tie_word_embeddings":true,"vocab_size":32000},"rope":{"partial_rotary_factor":1.0,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
gpt_oss {"aliases":{"num_experts":"num_local_experts"},"defaults":{"attention_bias":true,"head_dim":64,"hidden_act":"silu","hidden_size":2880,"intermediate_size":2880,"max_position_embeddings":131072,"num_attention_heads":64,"num_experts":128,"num_hidden_layers":36,"num_key_value_heads":8,"num_local_experts":128,"rms_norm_eps":1e-05,"sliding_window":128,"vocab_size":201088},"kinds":["full_attention","sliding_attention"],"rope":{"beta_fast":32.0,"beta_slow":1.0,"factor":32.0,"original_max_position_embeddings":4096,"rope_theta":150000.0,"rope_type":"yarn","truncate":false},"rotary":true}
gptj {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"activation_function":"gelu_new","hidden_size":4096,"max_position_embeddings":2048,"num_attention_heads":16,"num_hidden_layers":28,"vocab_size":50400}}
granite {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
granite4_vision {"text":"granite4_vision_text"}
granite4_vision_text {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
granite_docling {"defaults":{"tie_word_embeddings":true},"text":"granite_docling_text"}
granite_docling_text {"defaults":{"hidden_act":"silu","hidden_size":1024,"intermediate_size":2048,"max_position_embeddings":32768,"num_attention_heads":16,"num_hidden_layers":28,"num_key_value_heads":4,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":133800},"rotary":true}
granite_speech {"defaults":{"tie_word_embeddings":true},"text":"granite"}
granite_speech_plus {"defaults":{"tie_word_embeddings":true},"text":"granite"}
granite_swa {"defaults":{"hidden_act":"silu","hidden_size":2560,"intermediate_size":8192,"max_position_embeddings":8192,"num_attention_heads":20,"num_hidden_layers":24,"num_key_value_heads":4,"rms_norm_eps":1e-05,"sliding_window":128,"tie_word_embeddings":true,"vocab_size":100352},"kinds":["full_attention","sliding_attention"],"rotary":true}
granitemoe {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"num_local_experts":8,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
granitemoe_swa {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"num_local_experts":8,"rms_norm_eps":1e-06,"sliding_window":128,"vocab_size":32000},"kinds":["full_attention","sliding_attention"],"rotary":true}
granitemoehybrid {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"num_local_experts":8,"rms_norm_eps":1e-06,"vocab_size":32000},"kinds":["linear_attention"],"rotary":true,"stateful":true}
granitemoeshared {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"num_local_experts":8,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
gte {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":8192,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":250048},"rope":{"rope_theta":160000.0,"rope_type":"default"},"rotary":true}
helium {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2560,"intermediate_size":7040,"max_position_embeddings":4096,"num_attention_heads":20,"num_hidden_layers":24,"num_key_value_heads":20,"rms_norm_eps":1e-08,"vocab_size":48000},"rope":{"rope_theta":100000.0,"rope_type":"default"},"rotary":true}
hrm_text {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":1536,"intermediate_size":4096,"max_position_embeddings":2048,"num_attention_heads":12,"num_hidden_layers":16,"rms_norm_eps":1e-06,"vocab_size":151808},"rotary":true}
hunyuan_v1_dense {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"vocab_size":290943},"rotary":true}
hunyuan_v1_moe {"aliases":{"num_local_experts":"num_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_experts":1,"num_hidden_layers":32,"num_local_experts":1,"rms_norm_eps":1e-05,"vocab_size":290943},"rotary":true}
hunyuan_vl {"defaults":{"tie_word_embeddings":true},"text":"hunyuan_vl_text"}
hunyuan_vl_text {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":290943},"rotary":true}
hy_v3 {"aliases":{"num_local_experts":"num_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":13312,"max_position_embeddings":131072,"num_attention_heads":64,"num_experts":192,"num_hidden_layers":80,"num_key_value_heads":8,"num_local_experts":192,"rms_norm_eps":1e-05,"vocab_size":120832},"rope":{"rope_theta":11158840.0,"rope_type":"default"},"rotary":true}
hy_v4 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":256,"hidden_act":"silu","hidden_size":2816,"intermediate_size":6912,"kv_lora_rank":512,"max_position_embeddings":262144,"n_routed_experts":256,"num_attention_heads":32,"num_hidden_layers":34,"num_key_value_heads":32,"num_local_experts":256,"qk_nope_head_dim":192,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":120832},"kinds":["indexed_attention"],"rotary":true}
hyperclovax {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
hyperclovax_vision_v2 {"defaults":{"tie_word_embeddings":true},"text":"hyperclovax"}
ibert {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
idefics {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
idefics2 {"text":"mistral"}
idefics3 {"text":"llama"}
inkling2 {"text":"inkling2_text"}
inkling2_text {"aliases":{"intermediate_size":"moe_intermediate_size","num_local_experts":"n_routed_experts","sliding_window":"sliding_window_size"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4608,"intermediate_size":2304,"max_position_embeddings":1048576,"n_routed_experts":384,"num_attention_heads":48,"num_hidden_layers":48,"num_key_value_heads":8,"num_local_experts":384,"rms_norm_eps":1e-06,"sliding_window":1024,"vocab_size":201024},"kinds":["hybrid","hybrid_sliding"]}
inkling_mm_model {"text":"inkling_text"}
inkling_text {"aliases":{"num_local_experts":"n_routed_experts","sliding_window":"sliding_window_size"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":6144,"intermediate_size":24576,"max_position_embeddings":131072,"n_routed_experts":256,"num_attention_heads":64,"num_hidden_layers":66,"num_key_value_heads":8,"num_local_experts":256,"rms_norm_eps":1e-06,"sliding_window":512,"vocab_size":201024},"kinds":["hybrid","hybrid_sliding"]}
instructblip {"text":"opt"}
instructblipvideo {"text":"opt"}
internlm3 {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":10240,"max_position_embeddings":32768,"num_attention_heads":32,"num_hidden_layers":48,"num_key_value_heads":2,"rms_norm_eps":1e-05,"vocab_size":128512},"rotary":true}
internvl {"defaults":{"tie_word_embeddings":true},"text":"qwen2"}
iquestcoder {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":5120,"intermediate_size":27648,"max_position_embeddings":131072,"num_attention_heads":40,"num_hidden_layers":80,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":76800},"rotary":true}
jais2 {"defaults":{"attention_bias":true,"hidden_act":"relu2","hidden_size":3328,"intermediate_size":26624,"max_position_embeddings":8192,"mlp_bias":true,"num_attention_heads":26,"num_hidden_layers":32,"vocab_size":150272},"rotary":true}
jamba {"aliases":{"num_local_experts":"num_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":262144,"num_attention_heads":32,"num_experts":16,"num_hidden_layers":32,"num_key_value_heads":8,"num_local_experts":16,"rms_norm_eps":1e-06,"vocab_size":65536},"kinds":["full_attention","linear_attention"],"stateful":true}
janus {"defaults":{"tie_word_embeddings":true},"text":"llama"}
jetmoe {"aliases":{"head_dim":"kv_channels"},"defaults":{"activation_function":"silu","head_dim":128,"hidden_size":2048,"intermediate_size":5632,"max_position_embeddings":4096,"num_hidden_layers":12,"num_key_value_heads":16,"num_local_experts":8,"rms_norm_eps":1e-06,"tie_word_embeddings":true,"vocab_size":32000},"rotary":true}
jina_embeddings_v3 {"defaults":{"hidden_act":"gelu","hidden_size":1024,"intermediate_size":4096,"max_position_embeddings":8194,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":250002},"rope":{"rope_theta":20000.0,"rope_type":"default"},"rotary":true}
kimi_k25 {"defaults":{"tie_word_embeddings":true},"text":"deepseek_v3"}
kimi_linear {"aliases":{"max_position_embeddings":"model_max_length","num_local_experts":"num_experts"},"defaults":{"hidden_act":"silu","hidden_size":2304,"intermediate_size":9216,"kv_lora_rank":512,"num_attention_heads":32,"num_experts":256,"num_hidden_layers":27,"num_key_value_heads":32,"num_local_experts":256,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":163840},"kinds":["full_attention","linear_attention"],"stateful":true}
kolibri1 {"aliases":{"num_experts":"num_local_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2560,"max_position_embeddings":262144,"num_attention_heads":48,"num_experts":384,"num_hidden_layers":50,"num_key_value_heads":4,"num_local_experts":384,"rms_norm_eps":1e-06,"sliding_window":513,"vocab_size":128000},"kinds":["full_attention","sliding_attention"],"rotary":true}
kosmos-2 {"defaults":{"tie_word_embeddings":true},"text":"kosmos_2_text_model"}
kosmos-2.5 {"defaults":{"tie_word_embeddings":true},"text":"kosmos_2_5_text_model"}
kosmos_2_5_text_model {"aliases":{"hidden_size":"embed_dim","num_attention_heads":"attention_heads","num_hidden_layers":"layers"},"defaults":{"activation_function":"gelu","hidden_size":1536,"max_position_embeddings":4096,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":108481}}
kosmos_2_text_model {"aliases":{"hidden_size":"embed_dim","num_attention_heads":"attention_heads","num_hidden_layers":"layers"},"defaults":{"activation_function":"gelu","hidden_size":2048,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":65037}}
kyutai_speech_to_text {"defaults":{"hidden_act":"silu","hidden_size":2048,"max_position_embeddings":750,"num_attention_heads":32,"num_hidden_layers":48,"rms_norm_eps":1e-08,"sliding_window":375,"vocab_size":4001},"rotary":true}
laguna {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2048,"intermediate_size":8192,"max_position_embeddings":131072,"num_attention_heads":48,"num_experts":256,"num_hidden_layers":40,"num_key_value_heads":8,"rms_norm_eps":1e-06,"sliding_window":512,"vocab_size":100352},"kinds":["full_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.5,"rope_theta":500000.0,"rope_type":"default"},"sliding_attention":{"partial_rotary_factor":1.0,"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
layoutlm {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
layoutlmv2 {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"vocab_size":30522}}
layoutlmv3 {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"vocab_size":50265}}
led {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
lfm2 {"defaults":{"hidden_size":2560,"intermediate_size":12288,"max_position_embeddings":128000,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"tie_word_embeddings":true,"vocab_size":65536},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
lfm2_moe {"defaults":{"hidden_size":2048,"intermediate_size":7168,"max_position_embeddings":128000,"num_attention_heads":32,"num_experts":32,"num_hidden_layers":32,"num_key_value_heads":8,"tie_word_embeddings":true,"vocab_size":65536},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
lfm2_vl {"defaults":{"tie_word_embeddings":true},"text":"lfm2"}
lfm3 {"aliases":{"rms_norm_eps":"norm_eps"},"defaults":{"head_dim":128,"hidden_size":2048,"intermediate_size":7680,"max_position_embeddings":128000,"num_attention_heads":16,"num_hidden_layers":24,"num_key_value_heads":4,"rms_norm_eps":1e-05,"sliding_window":256,"tie_word_embeddings":true,"vocab_size":128000},"kinds":["conv","full_attention","sliding_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.5,"rope_theta":1000000.0,"rope_type":"proportional"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
lfm3_vl {"defaults":{"tie_word_embeddings":true},"text":"lfm3"}
lighton_ocr {"defaults":{"tie_word_embeddings":true},"text":"qwen3"}
lilt {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"vocab_size":30522}}
llama {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":32000},"rotary":true}
llama4 {"text":"llama4_text"}
llama4_text {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":5120,"intermediate_size":8192,"max_position_embeddings":131072,"num_attention_heads":40,"num_hidden_layers":48,"num_key_value_heads":8,"num_local_experts":16,"rms_norm_eps":1e-05,"vocab_size":202048},"kinds":["chunked_attention","full_attention"],"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
llava {"text":"llama"}
llava_next {"text":"llama"}
llava_next_video {"text":"llama"}
llava_onevision {"text":"qwen2"}
longcat_flash {"aliases":{"intermediate_size":"ffn_hidden_size","num_local_experts":"n_routed_experts"},"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":6144,"intermediate_size":12288,"kv_lora_rank":512,"max_position_embeddings":131072,"n_routed_experts":512,"num_attention_heads":64,"num_local_experts":512,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":131072},"rope":{"rope_theta":10000000.0,"rope_type":"default"},"rotary":true}
longformer {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
longt5 {"aliases":{"head_dim":"d_kv","hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"head_dim":64,"hidden_size":512,"is_encoder_decoder":true,"num_attention_heads":8,"num_hidden_layers":6,"tie_word_embeddings":true,"vocab_size":32128}}
luke {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50267}}
m2m_100 {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"relu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":128112}}
mamba {"defaults":{"hidden_act":"silu","hidden_size":768,"num_hidden_layers":32,"tie_word_embeddings":true,"vocab_size":50280},"kinds":["linear_attention"],"stateful":true}
mamba2 {"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":4096,"num_hidden_layers":64,"vocab_size":32768},"kinds":["linear_attention"],"stateful":true}
marian {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":58101}}
markuplm {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"vocab_size":30522}}
mbart {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
megatron-bert {"defaults":{"hidden_act":"gelu","hidden_size":1024,"intermediate_size":4096,"max_position_embeddings":512,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":29056}}
mellum {"aliases":{"num_experts":"num_local_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2304,"intermediate_size":7168,"max_position_embeddings":131072,"num_attention_heads":32,"num_experts":64,"num_hidden_layers":28,"num_key_value_heads":4,"num_local_experts":64,"rms_norm_eps":1e-06,"sliding_window":1024,"vocab_size":98304},"kinds":["full_attention"],"rope":{"full_attention":{"rope_theta":500000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
mimo_v2_flash {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":192,"hidden_act":"silu","hidden_size":4096,"intermediate_size":16384,"max_position_embeddings":131072,"n_routed_experts":256,"num_attention_heads":64,"num_hidden_layers":48,"num_key_value_heads":4,"num_local_experts":256,"rms_norm_eps":1e-05,"sliding_window":129,"vocab_size":152576},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.334,"rope_theta":5000000.0,"rope_type":"default"},"sliding_attention":{"partial_rotary_factor":0.334,"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
minicpm3 {"defaults":{"hidden_act":"silu","hidden_size":2560,"intermediate_size":6400,"kv_lora_rank":256,"max_position_embeddings":32768,"num_attention_heads":40,"num_hidden_layers":62,"num_key_value_heads":40,"qk_nope_head_dim":64,"qk_rope_head_dim":32,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":73448},"rotary":true}
minicpm_ocr {"defaults":{"tie_word_embeddings":true},"stateful":true,"text":"qwen3_5_text"}
minicpmv4_6 {"stateful":true,"text":"qwen3_5_text"}
minicpmv4_7 {"stateful":true,"text":"qwen3_5_text"}
minimax {"aliases":{"num_experts":"num_local_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"num_attention_heads":32,"num_experts":8,"num_hidden_layers":32,"num_key_value_heads":8,"num_local_experts":8,"rms_norm_eps":1e-05,"vocab_size":32000},"kinds":["full_attention","linear_attention"],"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
minimax_m2 {"aliases":{"num_experts":"num_local_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":3072,"intermediate_size":1536,"max_position_embeddings":196608,"num_attention_heads":48,"num_experts":256,"num_hidden_layers":62,"num_key_value_heads":8,"num_local_experts":256,"rms_norm_eps":1e-06,"vocab_size":200064},"rope":{"rope_theta":5000000.0,"rope_type":"default"},"rotary":true}
minimax_m3_vl {"text":"minimax_m3_vl_text"}
minimax_m3_vl_text {"aliases":{"num_experts":"num_local_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":6144,"intermediate_size":3072,"max_position_embeddings":524288,"num_attention_heads":64,"num_experts":128,"num_hidden_layers":60,"num_key_value_heads":4,"num_local_experts":128,"rms_norm_eps":1e-06,"vocab_size":200064},"rope":{"rope_theta":5000000.0,"rope_type":"default"},"rotary":true}
ministral {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-06,"sliding_window":4096,"vocab_size":32000},"kinds":["sliding_attention"],"rotary":true}
ministral3 {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":262144,"num_attention_heads":32,"num_hidden_layers":34,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":131072},"rope":{"beta_fast":32.0,"beta_slow":1.0,"factor":16.0,"llama_4_scaling_beta":0.1,"max_position_embeddings":262144,"mscale":1.0,"mscale_all_dim":1.0,"original_max_position_embeddings":16384,"rope_theta":1000000.0,"rope_type":"yarn","type":"yarn"},"rotary":true}
mistral {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-06,"sliding_window":4096,"vocab_size":32000},"rotary":true}
mistral3 {"defaults":{"tie_word_embeddings":true},"text":"mistral"}
mistral4 {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":12288,"kv_lora_rank":256,"max_position_embeddings":1048576,"n_routed_experts":128,"num_attention_heads":32,"num_hidden_layers":36,"num_key_value_heads":32,"num_local_experts":128,"qk_nope_head_dim":64,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"vocab_size":131072},"rope":{"beta_fast":32.0,"beta_slow":1.0,"factor":128.0,"llama_4_scaling_beta":0.1,"max_position_embeddings":1048576,"mscale":1.0,"mscale_all_dim":1.0,"original_max_position_embeddings":8192,"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"yarn","type":"yarn"},"rotary":true}
mistral_large4 {"text":"mistral_large4_text"}
mistral_large4_text {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":6144,"intermediate_size":24576,"kv_lora_rank":512,"max_position_embeddings":1048576,"n_routed_experts":128,"num_attention_heads":64,"num_hidden_layers":72,"num_key_value_heads":64,"num_local_experts":128,"qk_nope_head_dim":64,"qk_rope_head_dim":64,"rms_norm_eps":1e-05,"vocab_size":204800},"kinds":["indexed_attention"],"rope":{"attention_factor":1.0,"beta_fast":32.0,"beta_slow":1.0,"factor":2048.0,"original_max_position_embeddings":512,"rope_theta":10000.0,"rope_type":"yarn"},"rotary":true}
mixtral {"aliases":{"num_experts":"num_local_experts"},"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"num_attention_heads":32,"num_experts":8,"num_hidden_layers":32,"num_key_value_heads":8,"num_local_experts":8,"rms_norm_eps":1e-05,"vocab_size":32000},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
mllama {"text":"mllama_text_model"}
mllama_text_model {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":40,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":128256},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
mobilebert {"defaults":{"hidden_act":"relu","hidden_size":512,"intermediate_size":512,"max_position_embeddings":512,"num_attention_heads":4,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":30522}}
modernbert {"defaults":{"hidden_activation":"gelu","hidden_size":768,"intermediate_size":1152,"max_position_embeddings":8192,"num_attention_heads":12,"num_hidden_layers":22,"tie_word_embeddings":true,"vocab_size":50368},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"rope_theta":160000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
modernbert-decoder {"defaults":{"hidden_activation":"gelu","hidden_size":768,"intermediate_size":1152,"max_position_embeddings":8192,"num_attention_heads":12,"num_hidden_layers":22,"tie_word_embeddings":true,"vocab_size":50368},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"rope_theta":160000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
modernvbert {"text":"modernbert"}
molmo2 {"text":"molmo2_text"}
molmo2_text {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":12288,"max_position_embeddings":36864,"num_attention_heads":32,"num_hidden_layers":36,"num_key_value_heads":8,"rms_norm_eps":1e-06,"vocab_size":151936},"rotary":true}
moonshine {"aliases":{"hidden_act":"decoder_hidden_act","num_attention_heads":"decoder_num_attention_heads","num_hidden_layers":"decoder_num_hidden_layers","num_key_value_heads":"decoder_num_key_value_heads"},"defaults":{"hidden_act":"silu","hidden_size":288,"intermediate_size":1152,"is_encoder_decoder":true,"max_position_embeddings":512,"num_attention_heads":8,"num_hidden_layers":6,"tie_word_embeddings":true,"vocab_size":32768},"rope":{"partial_rotary_factor":0.9,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
moonshine_streaming {"defaults":{"hidden_act":"silu","hidden_size":320,"intermediate_size":1280,"is_encoder_decoder":true,"max_position_embeddings":4096,"num_attention_heads":8,"num_hidden_layers":6,"vocab_size":32768},"rope":{"partial_rotary_factor":0.8,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
moshi {"defaults":{"hidden_act":"silu","hidden_size":4096,"max_position_embeddings":3000,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-08,"sliding_window":3000,"vocab_size":32000},"rotary":true}
moss_transcribe_diarize {"defaults":{"tie_word_embeddings":true},"text":"qwen3"}
mpnet {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30527}}
mpt {"aliases":{"hidden_size":"d_model","num_attention_heads":"n_heads","num_hidden_layers":"n_layers"},"defaults":{"hidden_size":2048,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":50368}}
mra {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
mt5 {"aliases":{"head_dim":"d_kv","hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"head_dim":64,"hidden_size":512,"is_encoder_decoder":true,"num_attention_heads":6,"num_hidden_layers":8,"tie_word_embeddings":true,"vocab_size":250112}}
muse_glimmer {"text":"muse_glimmer_text"}
muse_glimmer_text {"defaults":{"head_dim":128,"hidden_activation":"silu","hidden_size":6656,"intermediate_size":19968,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":52,"num_key_value_heads":2,"rms_norm_eps":1e-05,"sliding_window":2048,"vocab_size":202048},"kinds":["full_attention","sliding_attention"],"rotary":true}
muse_spark {"text":"muse_spark_text"}
muse_spark_text {"defaults":{"head_dim":64,"hidden_act":"silu","hidden_size":8192,"intermediate_size":16384,"max_position_embeddings":1048576,"num_attention_heads":128,"num_hidden_layers":62,"num_key_value_heads":16,"num_local_experts":256,"rms_norm_eps":1e-05,"sliding_window":2048,"vocab_size":202048},"kinds":["full_attention","sliding_attention"],"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
musicflamingo {"rope":{"partial_rotary_factor":0.2,"rope_theta":1200.0,"rope_type":"default"},"rotary":true,"text":"qwen2"}
musicgen {}
musicgen_melody {}
mvp {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50267}}
nanochat {"defaults":{"hidden_act":"relu2","hidden_size":768,"intermediate_size":8192,"max_position_embeddings":2048,"num_attention_heads":6,"num_hidden_layers":12,"rms_norm_eps":1e-06,"vocab_size":50304},"rotary":true}
nemo_speechlm {"stateful":true,"text":"nemotron_h"}
nemotron {"defaults":{"hidden_act":"relu2","hidden_size":6144,"intermediate_size":24576,"max_position_embeddings":4096,"num_attention_heads":48,"num_hidden_layers":32,"vocab_size":256000},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
nemotron_h {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":128,"hidden_size":4096,"intermediate_size":21504,"max_position_embeddings":4096,"n_routed_experts":8,"num_attention_heads":32,"num_key_value_heads":8,"num_local_experts":8,"vocab_size":131072},"kinds":["full_attention","linear_attention","mlp","moe"],"stateful":true}
nemotron_h_omni {"stateful":true,"text":"nemotron_h"}
neomme {"defaults":{"head_dim":64,"hidden_act":"relu2","hidden_size":1024,"intermediate_size":3584,"max_position_embeddings":16384,"num_attention_heads":16,"num_hidden_layers":17,"num_key_value_heads":4,"sliding_window":256,"tie_word_embeddings":true,"vocab_size":131072},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"partial_rotary_factor":0.25,"rope_theta":1000000.0,"rope_type":"default"},"sliding_attention":{"partial_rotary_factor":1.0,"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
nllb-moe {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"relu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_experts":128,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":128112}}
nomic_bert {"defaults":{"hidden_act":"silu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":2048,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30528},"rope":{"rope_theta":1000.0,"rope_type":"default"},"rotary":true}
nystromformer {"defaults":{"hidden_act":"gelu_new","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":510,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30000}}
olmo {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"vocab_size":50304},"rotary":true}
olmo2 {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"vocab_size":50304},"rotary":true}
olmo3 {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"sliding_window":4096,"vocab_size":50304},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"rope_theta":500000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":500000.0,"rope_type":"default"}},"rotary":true}
olmo_hybrid {"defaults":{"hidden_act":"silu","hidden_size":3840,"intermediate_size":11008,"max_position_embeddings":65536,"num_attention_heads":30,"num_hidden_layers":32,"rms_norm_eps":1e-06,"vocab_size":100352},"kinds":["full_attention","linear_attention"],"rotary":true,"stateful":true}
olmoe {"aliases":{"num_local_experts":"num_experts"},"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":2048,"max_position_embeddings":4096,"num_attention_heads":16,"num_experts":64,"num_hidden_layers":16,"num_local_experts":64,"rms_norm_eps":1e-05,"vocab_size":50304},"rotary":true}
openai-gpt {"aliases":{"hidden_size":"n_embd","max_position_embeddings":"n_positions","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"hidden_size":768,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":40478}}
openai_privacy_filter {"aliases":{"num_experts":"num_local_experts"},"defaults":{"attention_bias":true,"head_dim":64,"hidden_size":640,"intermediate_size":640,"max_position_embeddings":131072,"num_attention_heads":14,"num_experts":128,"num_hidden_layers":8,"num_key_value_heads":2,"num_local_experts":128,"rms_norm_eps":1e-05,"sliding_window":128,"vocab_size":200064},"rope":{"beta_fast":32.0,"beta_slow":1.0,"factor":32.0,"original_max_position_embeddings":4096,"rope_theta":150000.0,"rope_type":"yarn","truncate":false},"rotary":true}
opt {"defaults":{"activation_function":"relu","hidden_size":768,"max_position_embeddings":2048,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50272}}
ovis2 {"defaults":{"hidden_size":1536,"tie_word_embeddings":true,"vocab_size":151643},"text":"qwen2"}
paddleocr_vl {"defaults":{"tie_word_embeddings":true},"text":"paddleocr_vl_text"}
paddleocr_vl_text {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":1024,"intermediate_size":3072,"max_position_embeddings":131072,"num_attention_heads":16,"num_hidden_layers":18,"num_key_value_heads":2,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":103424},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
paligemma {"defaults":{"hidden_size":2048,"tie_word_embeddings":true,"vocab_size":257152},"text":"gemma"}
pegasus {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
pegasus_x {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":16384,"num_attention_heads":16,"num_hidden_layers":16,"tie_word_embeddings":true,"vocab_size":96103}}
perceiver {"defaults":{"hidden_act":"gelu","max_position_embeddings":2048,"vocab_size":262}}
perception_lm {"text":"llama"}
persimmon {"defaults":{"hidden_act":"relu2","hidden_size":4096,"intermediate_size":16384,"max_position_embeddings":16384,"num_attention_heads":64,"num_hidden_layers":36,"vocab_size":262144},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
phi {"defaults":{"hidden_act":"gelu_new","hidden_size":2048,"intermediate_size":8192,"max_position_embeddings":2048,"num_attention_heads":32,"num_hidden_layers":24,"vocab_size":51200},"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
phi3 {"defaults":{"hidden_act":"silu","hidden_size":3072,"intermediate_size":8192,"max_position_embeddings":4096,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-05,"vocab_size":32064},"rope":{"partial_rotary_factor":1.0,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
phi4_multimodal {"defaults":{"hidden_act":"silu","hidden_size":3072,"intermediate_size":8192,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-05,"vocab_size":200064},"rope":{"partial_rotary_factor":1.0,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
phimoe {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":6400,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"num_local_experts":16,"rms_norm_eps":1e-05,"vocab_size":32064},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
pi0 {}
pix2struct {"defaults":{"is_encoder_decoder":true},"text":"pix2struct_text_model"}
pix2struct_text_model {"aliases":{"num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"hidden_size":768,"num_attention_heads":12,"num_hidden_layers":12,"vocab_size":50244}}
plbart {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":768,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":12,"num_hidden_layers":6,"tie_word_embeddings":true,"vocab_size":50005}}
pop2piano {"aliases":{"hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"hidden_size":512,"is_encoder_decoder":true,"num_attention_heads":8,"num_hidden_layers":6,"tie_word_embeddings":true,"vocab_size":2400}}
pp_chart2table {"defaults":{"tie_word_embeddings":true},"text":"qwen2"}
pp_formulanet {"defaults":{"is_encoder_decoder":true},"text":"pp_formulanet_text"}
pp_formulanet_text {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":512,"is_encoder_decoder":true,"max_position_embeddings":2560,"num_attention_heads":16,"num_hidden_layers":12,"vocab_size":50000}}
prophetnet {"aliases":{"num_attention_heads":"num_encoder_attention_heads"},"defaults":{"activation_function":"gelu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":512,"num_attention_heads":16,"tie_word_embeddings":true,"vocab_size":30522}}
qianfan_ocr {"text":"qwen3"}
qwen2 {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":22016,"max_position_embeddings":32768,"max_window_layers":28,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":32,"rms_norm_eps":1e-06,"sliding_window":4096,"use_sliding_window":false,"vocab_size":151936},"kinds":["full_attention"],"rotary":true}
qwen2_5_omni {}
qwen2_5_omni_text {"defaults":{"hidden_act":"silu","hidden_size":3584,"intermediate_size":18944,"max_position_embeddings":32768,"max_window_layers":28,"num_attention_heads":28,"num_hidden_layers":28,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":32768,"tie_word_embeddings":true,"use_sliding_window":false,"vocab_size":152064},"kinds":["full_attention"],"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
qwen2_5_omni_thinker {"text":"qwen2_5_omni_text"}
qwen2_5_vl {"text":"qwen2_5_vl_text"}
qwen2_5_vl_text {"defaults":{"hidden_act":"silu","hidden_size":8192,"intermediate_size":29568,"max_position_embeddings":32768,"max_window_layers":80,"num_attention_heads":64,"num_hidden_layers":80,"num_key_value_heads":8,"rms_norm_eps":1e-05,"sliding_window":4096,"use_sliding_window":false,"vocab_size":152064},"kinds":["full_attention"],"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
qwen2_audio {"text":"qwen2"}
qwen2_moe {"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":5632,"max_position_embeddings":32768,"max_window_layers":28,"num_attention_heads":16,"num_experts":60,"num_hidden_layers":24,"num_key_value_heads":16,"rms_norm_eps":1e-06,"sliding_window":4096,"use_sliding_window":false,"vocab_size":151936},"kinds":["full_attention"],"rotary":true}
qwen2_vl {"text":"qwen2_vl_text"}
qwen2_vl_text {"defaults":{"hidden_act":"silu","hidden_size":8192,"intermediate_size":29568,"max_position_embeddings":32768,"max_window_layers":80,"num_attention_heads":64,"num_hidden_layers":80,"num_key_value_heads":8,"rms_norm_eps":1e-05,"sliding_window":4096,"use_sliding_window":false,"vocab_size":152064},"kinds":["full_attention"],"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
qwen3 {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":22016,"max_position_embeddings":32768,"max_window_layers":28,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":32,"rms_norm_eps":1e-06,"sliding_window":4096,"use_sliding_window":false,"vocab_size":151936},"kinds":["full_attention"],"rotary":true}
qwen3_5 {"stateful":true,"text":"qwen3_5_text"}
qwen3_5_moe {"stateful":true,"text":"qwen3_5_moe_text"}
qwen3_5_moe_text {"defaults":{"head_dim":256,"hidden_act":"silu","hidden_size":2048,"max_position_embeddings":32768,"num_attention_heads":16,"num_experts":256,"num_hidden_layers":40,"num_key_value_heads":2,"rms_norm_eps":1e-06,"vocab_size":248320},"kinds":["full_attention","linear_attention"],"rope":{"partial_rotary_factor":0.25,"rope_theta":10000.0,"rope_type":"default"},"rotary":true,"stateful":true}
qwen3_5_text {"defaults":{"head_dim":256,"hidden_act":"silu","hidden_size":4096,"intermediate_size":12288,"max_position_embeddings":32768,"num_attention_heads":16,"num_hidden_layers":32,"num_key_value_heads":4,"rms_norm_eps":1e-06,"vocab_size":248320},"kinds":["full_attention","linear_attention"],"rope":{"partial_rotary_factor":0.25,"rope_theta":10000.0,"rope_type":"default"},"rotary":true,"stateful":true}
qwen3_asr {"defaults":{"tie_word_embeddings":true},"text":"qwen3"}
qwen3_moe {"aliases":{"num_experts":"num_local_experts"},"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":6144,"max_position_embeddings":32768,"num_attention_heads":32,"num_experts":128,"num_hidden_layers":24,"num_key_value_heads":4,"num_local_experts":128,"rms_norm_eps":1e-06,"sliding_window":4096,"use_sliding_window":false,"vocab_size":151936},"rotary":true}
qwen3_next {"defaults":{"head_dim":256,"hidden_act":"silu","hidden_size":2048,"intermediate_size":5632,"max_position_embeddings":32768,"num_attention_heads":16,"num_experts":512,"num_hidden_layers":48,"num_key_value_heads":2,"rms_norm_eps":1e-06,"vocab_size":151936},"kinds":["full_attention","linear_attention"],"rope":{"partial_rotary_factor":0.25,"rope_theta":10000.0,"rope_type":"default"},"rotary":true,"stateful":true}
qwen3_omni_moe {}
qwen3_omni_moe_text {"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":18944,"max_position_embeddings":32768,"num_attention_heads":28,"num_experts":128,"num_hidden_layers":28,"num_key_value_heads":4,"rms_norm_eps":1e-06,"vocab_size":3584},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
qwen3_omni_moe_thinker {"text":"qwen3_omni_moe_text"}
qwen3_vl {"text":"qwen3_vl_text"}
qwen3_vl_moe {"text":"qwen3_vl_moe_text"}
qwen3_vl_moe_text {"aliases":{"num_experts":"num_local_experts"},"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":5632,"max_position_embeddings":128000,"num_attention_heads":16,"num_experts":60,"num_hidden_layers":24,"num_key_value_heads":16,"num_local_experts":60,"rms_norm_eps":1e-06,"tie_word_embeddings":true,"vocab_size":151936},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
qwen3_vl_text {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":22016,"max_position_embeddings":128000,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":32,"rms_norm_eps":1e-06,"vocab_size":151936},"rope":{"rope_theta":500000.0,"rope_type":"default"},"rotary":true}
qwen4_exp {"stateful":true,"text":"qwen4_exp_text"}
qwen4_exp_text {"defaults":{"head_dim":256,"hidden_act":"silu","hidden_size":2048,"max_position_embeddings":32768,"num_attention_heads":16,"num_experts":512,"num_hidden_layers":40,"num_key_value_heads":2,"rms_norm_eps":1e-06,"vocab_size":248320},"kinds":["indexed_attention","linear_attention"],"rotary":true,"stateful":true}
recurrent_gemma {"aliases":{"sliding_window":"attention_window_size"},"defaults":{"hidden_activation":"gelu_pytorch_tanh","hidden_size":2560,"intermediate_size":7680,"num_attention_heads":10,"num_hidden_layers":26,"rms_norm_eps":1e-06,"sliding_window":2048,"tie_word_embeddings":true,"vocab_size":256000},"kinds":["linear_attention","sliding_attention"],"rope":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"},"rotary":true,"stateful":true}
reformer {"defaults":{"hidden_act":"relu","hidden_size":256,"max_position_embeddings":4096,"num_attention_heads":12,"vocab_size":320}}
rembert {"defaults":{"hidden_act":"gelu","hidden_size":1152,"intermediate_size":4608,"max_position_embeddings":512,"num_attention_heads":18,"num_hidden_layers":32,"vocab_size":250300}}
roberta {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
roberta-prelayernorm {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
roc_bert {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
roformer {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":1536,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50000}}
rwkv {"aliases":{"max_position_embeddings":"context_length"},"defaults":{"hidden_size":4096,"max_position_embeddings":1024,"num_hidden_layers":32,"vocab_size":50277},"stateful":true}
seamless_m4t {"aliases":{"num_attention_heads":"decoder_attention_heads","num_hidden_layers":"decoder_layers"},"defaults":{"activation_function":"relu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":1024,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":256102}}
seamless_m4t_v2 {"aliases":{"num_attention_heads":"decoder_attention_heads","num_hidden_layers":"decoder_layers"},"defaults":{"activation_function":"relu","hidden_size":1024,"is_encoder_decoder":true,"max_position_embeddings":4096,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":256102}}
seed_oss {"defaults":{"attention_bias":true,"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":27648,"max_position_embeddings":524288,"num_attention_heads":80,"num_hidden_layers":64,"num_key_value_heads":8,"rms_norm_eps":1e-06,"vocab_size":155136},"rotary":true}
shieldgemma2 {"text":"gemma3_text"}
smollm3 {"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":11008,"max_position_embeddings":32768,"num_attention_heads":16,"num_hidden_layers":36,"num_key_value_heads":4,"rms_norm_eps":1e-06,"tie_word_embeddings":true,"use_sliding_window":false,"vocab_size":128256},"rope":{"rope_theta":2000000.0,"rope_type":"default"},"rotary":true}
smolvlm {"text":"llama"}
solar_open {"aliases":{"num_local_experts":"n_routed_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"max_position_embeddings":131072,"n_routed_experts":128,"num_attention_heads":64,"num_hidden_layers":48,"num_key_value_heads":8,"num_local_experts":128,"rms_norm_eps":1e-05,"vocab_size":196608},"rope":{"rope_theta":1000000.0,"rope_type":"default"},"rotary":true}
speech-encoder-decoder {"defaults":{"is_encoder_decoder":true}}
speech_to_text {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"activation_function":"relu","hidden_size":256,"is_encoder_decoder":true,"num_attention_heads":4,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":10000}}
speecht5 {"aliases":{"num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers"},"defaults":{"hidden_act":"gelu","hidden_size":768,"is_encoder_decoder":true,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":81}}
squeezebert {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
stablelm {"defaults":{"hidden_act":"silu","hidden_size":2560,"intermediate_size":6912,"max_position_embeddings":4096,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":32,"vocab_size":50304},"rope":{"partial_rotary_factor":0.25,"rope_theta":10000.0,"rope_type":"default"},"rotary":true}
starcoder2 {"defaults":{"hidden_act":"gelu_pytorch_tanh","hidden_size":3072,"intermediate_size":12288,"max_position_embeddings":4096,"num_attention_heads":24,"num_hidden_layers":30,"num_key_value_heads":2,"tie_word_embeddings":true,"vocab_size":49152},"rotary":true}
step3p5 {"aliases":{"moe_num_experts":"n_routed_experts","num_local_experts":"n_routed_experts"},"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":4096,"intermediate_size":11264,"max_position_embeddings":128000,"moe_num_experts":288,"n_routed_experts":288,"num_attention_heads":64,"num_hidden_layers":45,"num_key_value_heads":8,"num_local_experts":288,"rms_norm_eps":1e-05,"vocab_size":128815},"rope":{"full_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
step3p7 {"text":"step3p5"}
switch_transformers {"aliases":{"hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"hidden_size":768,"is_encoder_decoder":true,"num_attention_heads":12,"num_experts":8,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":32128}}
t5 {"aliases":{"head_dim":"d_kv","hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"head_dim":64,"hidden_size":512,"is_encoder_decoder":true,"num_attention_heads":8,"num_hidden_layers":6,"tie_word_embeddings":true,"vocab_size":32128}}
t5gemma {"defaults":{"is_encoder_decoder":true,"tie_word_embeddings":true,"vocab_size":256000}}
t5gemma2 {"defaults":{"is_encoder_decoder":true,"tie_word_embeddings":true}}
tapas {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":1024,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
trocr {"aliases":{"hidden_size":"d_model","num_attention_heads":"decoder_attention_heads","num_hidden_layers":"decoder_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"max_position_embeddings":512,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
udop {"aliases":{"hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"hidden_size":1024,"is_encoder_decoder":true,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":33201}}
ultrabert {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":11008,"max_position_embeddings":32768,"num_attention_heads":32,"num_hidden_layers":32,"rms_norm_eps":1e-06,"sliding_window":128,"vocab_size":32000},"kinds":["full_attention","sliding_attention"],"rope":{"full_attention":{"rope_theta":2560000.0,"rope_type":"default"},"sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},"rotary":true}
ultravbert {"text":"ultrabert"}
umt5 {"aliases":{"head_dim":"d_kv","hidden_size":"d_model","num_attention_heads":"num_heads","num_hidden_layers":"num_layers"},"defaults":{"head_dim":64,"hidden_size":512,"is_encoder_decoder":true,"num_attention_heads":6,"num_hidden_layers":8,"tie_word_embeddings":true,"vocab_size":250112}}
unlimited_ocr {"text":"unlimited_ocr_text"}
unlimited_ocr_text {"aliases":{"num_experts":"n_routed_experts"},"defaults":{"hidden_act":"silu","hidden_size":1280,"intermediate_size":6848,"max_position_embeddings":32768,"n_routed_experts":64,"num_attention_heads":10,"num_experts":64,"num_hidden_layers":12,"num_key_value_heads":10,"rms_norm_eps":1e-06,"sliding_window":128,"vocab_size":129280},"kinds":["reference_sliding_attention"],"rotary":true}
vaultgemma {"defaults":{"head_dim":256,"hidden_activation":"gelu_pytorch_tanh","hidden_size":2304,"intermediate_size":9216,"max_position_embeddings":8192,"num_attention_heads":8,"num_hidden_layers":26,"num_key_value_heads":4,"rms_norm_eps":1e-06,"sliding_window":4096,"tie_word_embeddings":true,"vocab_size":256000},"kinds":["full_attention","sliding_attention"],"rotary":true}
vibevoice {"text":"qwen2"}
vibevoice_asr {"text":"qwen2"}
video_llama_3 {"text":"qwen2"}
video_llava {"text":"llama"}
vipllava {"text":"llama"}
vision-encoder-decoder {"defaults":{"is_encoder_decoder":true}}
voxtral {"text":"llama"}
voxtral_realtime {"defaults":{"tie_word_embeddings":true},"text":"voxtral_realtime_text"}
voxtral_realtime_text {"defaults":{"hidden_act":"silu","hidden_size":4096,"intermediate_size":14336,"max_position_embeddings":131072,"num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,"rms_norm_eps":1e-06,"sliding_window":4096,"vocab_size":32000},"rotary":true}
whisper {"aliases":{"hidden_size":"d_model","num_attention_heads":"encoder_attention_heads","num_hidden_layers":"encoder_layers","num_key_value_heads":"encoder_attention_heads"},"defaults":{"activation_function":"gelu","hidden_size":384,"is_encoder_decoder":true,"num_attention_heads":6,"num_hidden_layers":4,"num_key_value_heads":6,"tie_word_embeddings":true,"vocab_size":51865}}
xglm {"aliases":{"hidden_size":"d_model","num_attention_heads":"attention_heads","num_hidden_layers":"num_layers"},"defaults":{"activation_function":"gelu","hidden_size":1024,"max_position_embeddings":2048,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":256008}}
xlm {"aliases":{"hidden_size":"emb_dim","num_attention_heads":"n_heads","num_hidden_layers":"n_layers"},"defaults":{"hidden_size":2048,"max_position_embeddings":512,"num_attention_heads":16,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30145}}
xlm-roberta {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
xlm-roberta-xl {"defaults":{"hidden_act":"gelu","hidden_size":2560,"intermediate_size":10240,"max_position_embeddings":514,"num_attention_heads":32,"num_hidden_layers":36,"tie_word_embeddings":true,"vocab_size":250880}}
xlnet {"aliases":{"hidden_size":"d_model","num_attention_heads":"n_head","num_hidden_layers":"n_layer"},"defaults":{"hidden_size":1024,"num_attention_heads":16,"num_hidden_layers":24,"tie_word_embeddings":true,"vocab_size":32000}}
xlstm {"defaults":{"hidden_size":4096,"num_hidden_layers":32,"vocab_size":50304},"stateful":true}
xmod {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":512,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":30522}}
yoso {"defaults":{"hidden_act":"gelu","hidden_size":768,"intermediate_size":3072,"max_position_embeddings":4096,"num_attention_heads":12,"num_hidden_layers":12,"tie_word_embeddings":true,"vocab_size":50265}}
youtu {"defaults":{"hidden_act":"silu","hidden_size":2048,"intermediate_size":6144,"kv_lora_rank":512,"max_position_embeddings":131072,"num_attention_heads":16,"num_hidden_layers":32,"num_key_value_heads":16,"qk_nope_head_dim":128,"qk_rope_head_dim":64,"rms_norm_eps":1e-06,"tie_word_embeddings":true,"vocab_size":128256},"rotary":true}
zamba {"aliases":{"head_dim":"attention_head_dim"},"defaults":{"hidden_act":"gelu","hidden_size":3712,"intermediate_size":14848,"max_position_embeddings":4096,"num_attention_heads":16,"num_hidden_layers":76,"num_key_value_heads":16,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":32000},"kinds":["hybrid","linear_attention"],"stateful":true}
zamba2 {"aliases":{"head_dim":"attention_head_dim"},"defaults":{"hidden_act":"gelu","hidden_size":2560,"max_position_embeddings":4096,"num_attention_heads":32,"num_hidden_layers":54,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":32000},"kinds":["hybrid","linear_attention"],"rotary":true,"stateful":true}
zaya {"defaults":{"head_dim":128,"hidden_act":"silu","hidden_size":2048,"max_position_embeddings":131072,"num_attention_heads":8,"num_experts":16,"num_hidden_layers":40,"num_key_value_heads":2,"rms_norm_eps":1e-05,"tie_word_embeddings":true,"vocab_size":262272},"kinds":["hybrid"],"rope":{"hybrid":{"partial_rotary_factor":0.5,"rope_theta":5000000.0,"rope_type":"default"},"hybrid_sliding":{"partial_rotary_factor":0.5,"rope_theta":10000.0,"rope_type":"default"}},"rotary":true,"stateful":true}
"""
