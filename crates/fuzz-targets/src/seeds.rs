//! Inputs that the parsers accept, to be changed.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, CreateTopicsRequest, FetchRequest, FindCoordinatorRequest, HeartbeatRequest,
    InitProducerIdRequest, JoinGroupRequest, ListOffsetsRequest, MetadataRequest, OffsetCommitRequest,
    OffsetFetchRequest, ProduceRequest, RequestHeader, SyncGroupRequest,
};
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request, StrBytes};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;
use speechverse::store::{Sample, SampleSource, SampleStore};

use crate::scratch;

/// The name that the store gives its first segment.
pub(crate) const SEGMENT: &str = "00000000000000000000.segment";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The content of every file of a folder, in the order of their names.
fn files_of(folder: &str) -> Vec<Vec<u8>> {
    let folder = repository().join(folder);
    let listed = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.is_file() && path.extension().is_none_or(|extension| extension != "sh"));
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).expect("a fixture"))
        .collect()
}

pub(crate) fn audio() -> Vec<Vec<u8>> {
    files_of("tests/fixtures/audio")
}

pub(crate) fn gguf() -> Vec<Vec<u8>> {
    let fixture = repository().join("crates/model-import/tests/fixtures/import_tiny.gguf");
    vec![std::fs::read(fixture).expect("a fixture"), ct2()]
}

/// The head of a CTranslate2 model, binary version 6, with one tensor of two values.
fn ct2() -> Vec<u8> {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend(u16::try_from(text.len() + 1).expect("a short name").to_le_bytes());
        out.extend(text.as_bytes());
        out.push(0);
    };
    let mut out = 6_u32.to_le_bytes().to_vec();
    text(&mut out, "WhisperSpec");
    out.extend(3_u32.to_le_bytes()); // revision
    out.extend(1_u32.to_le_bytes()); // tensors
    text(&mut out, "decoder/embeddings/weight");
    out.push(1); // rank
    out.extend(2_u32.to_le_bytes());
    out.push(0); // float32
    out.extend(8_u32.to_le_bytes());
    out.extend([0; 8]);
    out.extend(0_u32.to_le_bytes()); // aliases
    out
}

/// A safetensors file with a small tensor under each name.
pub(crate) fn checkpoint(names: &[&str]) -> Vec<u8> {
    let data = [0_u8; 24];
    let tensors: HashMap<String, TensorView<'_>> = names
        .iter()
        .map(|name| {
            (
                (*name).to_owned(),
                TensorView::new(Dtype::F32, vec![2, 3], &data).expect("24 bytes"),
            )
        })
        .collect();
    safetensors::serialize(&tensors, None).expect("it fits in memory")
}

pub(crate) fn safetensors() -> Vec<Vec<u8>> {
    vec![
        checkpoint(&["a.weight"]),
        checkpoint(&["a.weight", "a.bias", "layers.0.weight"]),
    ]
}

pub(crate) fn safetensors_indices() -> Vec<Vec<u8>> {
    let map = json!({"first.weight": "model-1.safetensors", "second.weight": "model-2.safetensors"});
    vec![
        json!({"metadata": {"total_size": 48}, "weight_map": map})
            .to_string()
            .into_bytes(),
        json!({"weight_map": {"first.weight": "../model-1.safetensors"}})
            .to_string()
            .into_bytes(),
    ]
}

pub(crate) fn manifests() -> Vec<Vec<u8>> {
    let lines = [
        json!({"audio_filepath": "a.wav", "duration": 1.5, "text": "good morning", "split": "train"}),
        json!({"audio_filepath": "b.wav", "duration": 2, "task": "asr,intent", "targets": {"asr": "hello", "intent": "greet"},
               "labels": [{"name": "greet", "description": "a greeting"}, {"name": "leave", "description": ""}]}),
        json!({"audio_filepath": "c.wav", "duration": 0.5, "task": "st", "target": "hallo", "source_lang": "en",
               "target_lang": "de", "fields": {"style": "short"}}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    vec![text.into_bytes(), lines[1].to_string().into_bytes()]
}

pub(crate) fn adapter_manifests() -> Vec<Vec<u8>> {
    let model = json!({"name": "tiny", "digest": "0".repeat(64), "model_type": "whisper"});
    let manifest = json!({
        "format": 1, "version": "v1", "parent": null, "created": "2026-01-01T00:00:00Z", "encoder": model, "llm": model,
        "curriculum": [], "data_digest": "", "metrics": {"wer": 0.1}, "settings": {},
        "files": {"adapter.safetensors": {"bytes": 5, "sha256": "0".repeat(64)}},
    });
    vec![manifest.to_string().into_bytes()]
}

pub(crate) fn chat_templates() -> Vec<Vec<u8>> {
    let published = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ \
        '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + \
        message['content'] | trim + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ \
        '<|im_start|>assistant\n' }}{% endif %}";
    let methods = "{{ bos_token }}{%- set ns = namespace(n=0) %}{% for m in messages %}{{ m.content.strip().split(' ')[0] \
        | tojson(indent=2) }}{{ '%s-%d' | format(m.role, loop.index) }}{{ m.items() | list }}{% endfor %}";
    [published, methods].map(|text| text.as_bytes().to_vec()).to_vec()
}

pub(crate) fn records() -> Vec<Vec<u8>> {
    let binary = "ce_specversion: 1.0\nce_type: speechverse.request.v1\nce_id: 42\nce_source: /test\nce_time: \
        2026-01-01T00:00:00Z\nce_instruction: Is the speaker happy?\nce_partials: true\nce_deadline: 2026-01-31T12:00:00Z\nce_labels: [\"yes\", \"no\"]\nce_maxtokens: 12\n\
        ce_session: s1\nce_fields: {\"style\": \"short\"}\ncontent-type: audio/wav\ntraceparent: \
        00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n\nRIFF";
    let chunk =
        "ce_type: speechverse.chunk.v1\nce_session: s1\nce_sequence: 3\nce_final: true\nce_task: asr\n\n0123";
    let event = json!({
        "specversion": "1.0", "id": "7", "source": "/test", "type": "speechverse.request.v1", "task": "asr",
        "labels": ["a", "b"], "datacontenttype": "audio/wav", "data_base64": "UklGRg==",
    });
    let structured = format!("content-type: application/cloudevents+json\n\n{event}");
    let formed = "ce_task: asr\nce_regex: [a-z]+( [a-z]+)*\nce_constrain: yes\n\nRIFF";
    let label = "ce_type: speechverse.label.v1\nce_id: 9\nce_target: good morning\nce_task: asr\n\nRIFF";
    let correction = "ce_type: speechverse.label.v1\nce_subject: 42\nce_target: good morning\n\n";
    let order = format!("\n{}", json!({"command": "promote", "version": "v1", "id": "c1"}));
    [binary, chunk, &structured, formed, label, correction, &order]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// Streams in order, mixed, doubled, with a chunk missing.
pub(crate) fn chunks() -> Vec<Vec<u8>> {
    let chunk = |session: &str, sequence: usize, last: bool, audio: &str| {
        format!(
            "ce_type: speechverse.chunk.v1\nce_session: {session}\nce_sequence: {sequence}\nce_final: {last}\n\n{audio}"
        )
    };
    let whole = [
        chunk("a", 0, false, "RIFF"),
        chunk("a", 1, false, "1234"),
        chunk("a", 2, true, "end"),
    ];
    let mixed = [
        &whole[0],
        &chunk("b", 0, true, "OggS"),
        &whole[1],
        &whole[1],
        &whole[2],
        &whole[2],
    ];
    let broken = [&whole[0], &whole[2], &whole[0]];
    [
        whole.join("\n==\n"),
        mixed.map(String::as_str).join("\n==\n"),
        broken.map(String::as_str).join("\n==\n"),
    ]
    .map(String::into_bytes)
    .to_vec()
}

/// The first byte says which language it is.
pub(crate) fn structures() -> Vec<Vec<u8>> {
    let object = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}, "at": {"format": "date-time", "type": "string"},
        },
        "required": ["name"], "additionalProperties": false,
    });
    let tree = json!({
        "$ref": "#/$defs/n",
        "$defs": {"n": {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}},
    });
    let union = json!({"anyOf": [{"type": "number", "multipleOf": 0.5}, {"const": "x"}, {"pattern": "^[a-z]+$", "type": "string"}]});
    let sums = "start: expr\nexpr: term | expr \"+\" term\nterm: NUMBER | \"(\" expr \")\"\nNUMBER: /[0-9]+/\n%ignore \" \"\n";
    let words = "start: greeting (\",\" name){0,3}\ngreeting: \"hello\" | \"good\" /(morning|evening)/\nname: /[A-Z][a-z]*/\n";
    let patterns = [
        r"\d{4}-\d{2}-\d{2}",
        r"[A-Z][a-z]{2,8}( [A-Z][a-z]+)*",
        r"(?i:yes|no)\.?",
        r"[^\s]+@[a-z]+\.(com|org)",
    ];
    let schemas = [object, tree, union].map(|schema| (b'0', schema.to_string()));
    let patterns = patterns.map(|pattern| (b'1', pattern.to_owned()));
    let grammars = [sums, words].map(|grammar| (b'2', grammar.to_owned()));
    let all = schemas.into_iter().chain(patterns).chain(grammars);
    all.map(|(kind, source)| [&[kind], source.as_bytes()].concat())
        .collect()
}

/// A request of type `R`, as its frame without the length.
fn request<R: Request + Encodable + HeaderVersion + Default>(
    version: i16,
    change: impl FnOnce(&mut R),
) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let header = RequestHeader::default()
        .with_request_api_key(R::KEY)
        .with_request_api_version(version)
        .with_correlation_id(1)
        .with_client_id(Some(StrBytes::from_static_str("fuzz")));
    header
        .encode(&mut bytes, R::header_version(version))
        .expect("a header");
    let mut body = R::default();
    change(&mut body);
    body.encode(&mut bytes, version).expect("a request");
    bytes.to_vec()
}

pub(crate) fn broker_frames() -> Vec<Vec<u8>> {
    let mut unknown = BytesMut::new();
    unknown.put_i16(ApiKey::ApiVersions as i16);
    unknown.put_i16(99);
    unknown.put_i32(1);
    vec![
        request::<ApiVersionsRequest>(3, |_| ()),
        request::<MetadataRequest>(9, |_| ()),
        request::<CreateTopicsRequest>(5, |_| ()),
        request::<ProduceRequest>(7, |_| ()),
        request::<FetchRequest>(11, |_| ()),
        request::<ListOffsetsRequest>(5, |_| ()),
        request::<FindCoordinatorRequest>(3, |_| ()),
        request::<JoinGroupRequest>(5, |_| ()),
        request::<SyncGroupRequest>(3, |_| ()),
        request::<HeartbeatRequest>(3, |_| ()),
        request::<OffsetCommitRequest>(7, |_| ()),
        request::<OffsetFetchRequest>(7, |_| ()),
        request::<InitProducerIdRequest>(3, |_| ()),
        unknown.to_vec(),
    ]
}

pub(crate) fn store_segments() -> Vec<Vec<u8>> {
    let folder = scratch::folder();
    let store = SampleStore::open(&scratch::store_config(folder.path())).expect("an empty folder");
    for number in 0..5_u16 {
        let sample = Sample {
            audio: (0..200 + number).map(|at| f32::from(at % 32) / 64.0).collect(),
            instruction: "Transcribe the speech.".to_owned(),
            target: format!("target {number}"),
            task: "asr".to_owned(),
            source: SampleSource {
                topic: "labels".to_owned(),
                partition: 0,
                offset: i64::from(number),
            },
            request_source: "/device".to_owned(),
            request_id: format!("request-{number}"),
            labels: Vec::new(),
            fields: BTreeMap::new(),
            constrained: false,
            written_ms: 1_700_000_000_000,
            received_ms: 1_700_000_000_000,
            may_train: number != 3,
        };
        store.put(&sample).expect("the store takes it");
    }
    drop(store);
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(folder.path()).expect("the store's folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "segment") {
            segments.push(std::fs::read(&path).expect("a segment"));
        }
    }
    assert!(!segments.is_empty(), "the store has written a segment");
    segments
}
