//! Tests of fetching from the hub, against a server on this machine that speaks its file interface and
//! misbehaves.

mod faults;
mod server;

use super::*;
use server::{COMMIT, Fault, Hub, Model, REPO, sha256};

const CONFIG: &str = r#"{"model_type": "whisper"}"#;

fn weights() -> Vec<u8> {
    (0..200_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// A model in one file, with a pickle beside it that nobody may ask for.
fn model() -> Model {
    let files = [
        ("config.json", CONFIG.as_bytes().to_vec(), false),
        ("tokenizer.json", b"{}".to_vec(), false),
        ("model.safetensors", weights(), true),
        ("pytorch_model.bin", vec![0; 5_000], true),
        ("onnx/model.onnx", vec![0; 5_000], true),
    ];
    Model {
        files: files
            .into_iter()
            .map(|(name, content, large)| (name.to_owned(), (content, large)))
            .collect(),
        token: None,
        fault: Fault::None,
        listing: None,
    }
}

fn faulty(fault: Fault) -> Model {
    Model { fault, ..model() }
}

/// The same weights in two files with an index.
fn sharded(names: [&str; 2]) -> Model {
    let mut model = model();
    let (whole, _) = model.files.remove("model.safetensors").unwrap();
    let index = json!({"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}).to_string();
    model.files.insert(INDEX.to_owned(), (index.into_bytes(), false));
    for (name, part) in names.iter().zip(whole.chunks(100_000)) {
        model.files.insert((*name).to_owned(), (part.to_vec(), true));
    }
    model
}

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn settings(&self, endpoint: &str) -> HubSettings {
        HubSettings {
            endpoint: endpoint.to_owned(),
            cache: self.0.path().join("hub"),
            token: None,
            offline: false,
            retry_wait: Duration::from_millis(1),
        }
    }

    fn models(&self) -> PathBuf {
        self.0.path().join("models")
    }

    fn fetch_with(&self, name: &str, settings: &HubSettings) -> Result<HubFetched, ImportError> {
        fetch_from_hub(&name.parse().unwrap(), settings, &self.models(), &mut |_| {})
    }

    fn fetch(&self, hub: &Hub) -> Result<HubFetched, ImportError> {
        self.fetch_with(REPO, &self.settings(&hub.endpoint))
    }

    /// Fetches from a hub that must fail; gives the message, after checking that no model appeared.
    fn refused(&self, model: Model) -> String {
        let error = self.fetch(&model.serve()).unwrap_err();
        assert!(!self.models().join("tiny-model").exists(), "{error}");
        assert!(matches!(error, ImportError::Hub(_)), "{error:?}");
        error.to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.models().join("tiny-model").join(name)).unwrap()
    }
}

fn asked_for(hub: &Hub, what: &str) -> usize {
    let asked = hub.asked.lock().unwrap();
    asked.iter().filter(|asked| asked.path.contains(what)).count()
}

#[test]
fn a_model_comes_into_the_cache_of_the_hub_and_from_there_into_its_folder() {
    let (home, hub) = (Home::new(), model().serve());

    let fetched = home.fetch(&hub).unwrap();

    assert_eq!((fetched.commit.as_str(), fetched.in_place), (COMMIT, false));
    assert_eq!(home.read("model.safetensors"), weights());
    assert_eq!(home.read("config.json"), CONFIG.as_bytes());
    let source: serde_json::Value = serde_json::from_slice(&home.read("source.json")).unwrap();
    assert_eq!(source["repo"], REPO);
    assert_eq!(source["commit"], COMMIT);
    assert_eq!(source["licence"], "mit");
    assert_eq!(source["files"]["model.safetensors"]["digest"], sha256(&weights()));
    let cached = home.0.path().join("hub/models--some-org--tiny-model");
    assert_eq!(std::fs::read_to_string(cached.join("refs/main")).unwrap(), COMMIT);
    let pointer = cached.join("snapshots").join(COMMIT).join("model.safetensors");
    assert_eq!(
        std::fs::read_link(&pointer).unwrap(),
        Path::new("../../blobs").join(sha256(&weights()))
    );
    assert_eq!(std::fs::read(pointer).unwrap(), weights());
}

#[test]
fn pickle_and_files_in_other_folders_are_never_asked_for() {
    let (home, hub) = (Home::new(), model().serve());

    home.fetch(&hub).unwrap();

    assert_eq!(asked_for(&hub, "pytorch_model.bin") + asked_for(&hub, "onnx"), 0);
    assert!(!home.models().join("tiny-model/pytorch_model.bin").exists());
}

#[test]
fn a_model_in_its_place_is_left_alone_and_a_whole_commit_needs_no_hub() {
    let (home, hub) = (Home::new(), model().serve());
    home.fetch(&hub).unwrap();
    let before = asked_for(&hub, "/resolve/");

    let again = home.fetch(&hub).unwrap();
    let nobody = home.settings("http://127.0.0.1:9");
    let pinned = home.fetch_with(&format!("{REPO}@{COMMIT}"), &nobody).unwrap();

    assert!(again.in_place && pinned.in_place);
    assert_eq!(
        asked_for(&hub, "/resolve/"),
        before,
        "nothing is downloaded twice"
    );
}

#[test]
fn a_model_that_lost_a_file_is_put_together_again_from_the_cache() {
    let (home, hub) = (Home::new(), model().serve());
    home.fetch(&hub).unwrap();
    std::fs::remove_file(home.models().join("tiny-model/tokenizer.json")).unwrap();
    let before = asked_for(&hub, "/resolve/");

    let again = home.fetch(&hub).unwrap();

    assert!(!again.in_place);
    assert_eq!(home.read("tokenizer.json"), b"{}");
    assert_eq!(asked_for(&hub, "/resolve/"), before);
}

#[test]
fn a_folder_with_another_model_is_not_touched() {
    let (home, hub) = (Home::new(), model().serve());
    let folder = home.models().join("tiny-model");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), "mine").unwrap();

    let error = home.fetch(&hub).unwrap_err();

    assert!(matches!(error, ImportError::DestinationExists { .. }), "{error}");
    assert_eq!(home.read("config.json"), b"mine");
}

#[test]
fn weights_in_several_files_come_with_their_index() {
    let (home, hub) = (
        Home::new(),
        sharded(["model-1.safetensors", "model-2.safetensors"]).serve(),
    );

    home.fetch(&hub).unwrap();

    let whole = [home.read("model-1.safetensors"), home.read("model-2.safetensors")].concat();
    assert_eq!(whole, weights());
    assert!(home.models().join("tiny-model").join(INDEX).exists());
}

#[test]
fn an_index_that_names_a_file_elsewhere_is_refused() {
    for odd in [
        "../../../etc/passwd",
        "/etc/passwd",
        "sub/model.safetensors",
        ".model.safetensors",
        "pytorch_model.bin",
    ] {
        let message = Home::new().refused(sharded([odd, "model-2.safetensors"]));

        assert!(message.contains(INDEX) && message.contains(odd), "{message}");
    }
}

#[test]
fn an_index_that_names_a_missing_file_is_refused() {
    let mut model = sharded(["model-1.safetensors", "model-2.safetensors"]);
    model.files.remove("model-2.safetensors");

    let message = Home::new().refused(model);

    assert!(message.contains("`model-2.safetensors`"), "{message}");
}

#[test]
fn the_token_goes_to_the_hub_and_not_to_where_large_files_lie() {
    let home = Home::new();
    let hub = Model {
        token: Some("secret"),
        ..model()
    }
    .serve();
    let settings = HubSettings {
        token: Some("secret".to_owned()),
        ..home.settings(&hub.endpoint)
    };

    home.fetch_with(REPO, &settings).unwrap();

    let storage = hub.asked_storage.lock().unwrap();
    assert!(!storage.is_empty());
    assert!(storage.iter().all(|asked| asked.token.is_none()), "{storage:?}");
    assert!(!format!("{settings:?}").contains("secret"));
}

#[test]
fn a_refusal_says_whether_a_token_was_sent() {
    let gated = || Model {
        token: Some("secret"),
        ..model()
    };
    let home = Home::new();

    let without = home.refused(gated());
    let hub = gated().serve();
    let settings = HubSettings {
        token: Some("wrong".to_owned()),
        ..home.settings(&hub.endpoint)
    };
    let with = home.fetch_with(REPO, &settings).unwrap_err().to_string();

    assert!(
        without.contains("HTTP 401") && without.contains("set HF_TOKEN"),
        "{without}"
    );
    assert!(
        with.contains("HTTP 401") && with.contains("does not give access"),
        "{with}"
    );
    assert!(!with.contains("wrong"), "{with}");
}

#[test]
fn a_model_or_revision_that_is_not_there_is_named() {
    let (home, hub) = (Home::new(), model().serve());

    for name in ["some-org/other-model", "some-org/tiny-model@v9"] {
        let error = home
            .fetch_with(name, &home.settings(&hub.endpoint))
            .unwrap_err()
            .to_string();

        assert!(
            error.contains("HTTP 404") && error.contains(&hub.endpoint),
            "{error}"
        );
    }
}

#[test]
fn a_revision_with_a_slash_is_escaped_and_remembered() {
    let (home, hub) = (Home::new(), model().serve());

    home.fetch_with(&format!("{REPO}@refs/pr/1"), &home.settings(&hub.endpoint))
        .unwrap();

    let reference = home
        .0
        .path()
        .join("hub/models--some-org--tiny-model/refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), COMMIT);
}

#[test]
fn a_model_with_pickle_alone_is_refused_with_the_reason() {
    let mut model = model();
    model.files.remove("model.safetensors");

    let message = Home::new().refused(model);

    assert!(
        message.contains("pickle") && message.contains("safetensors"),
        "{message}"
    );
}

#[test]
fn names_that_are_no_models_of_the_hub_are_refused() {
    for name in [
        "whisper-base",
        "a/b/c",
        "/a",
        "a/",
        "../b",
        "a/..",
        "a/b@",
        "a/b@../c",
        "a/b@/etc",
        "a/.b",
        "a b/c",
        "a/b@c d",
        "a/b@x//y",
        "-a/b",
    ] {
        assert!(name.parse::<HubModel>().is_err(), "{name}");
    }
    let model: HubModel = "openai/whisper-tiny.en@refs/pr/21".parse().unwrap();
    assert_eq!(
        (model.name(), model.to_string().as_str()),
        ("whisper-tiny.en", "openai/whisper-tiny.en@refs/pr/21")
    );
}

#[test]
fn the_variables_of_the_hub_are_honoured() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("token"), "from-a-file\n").unwrap();
    let folder = home.path().to_str().unwrap();
    let from = |pairs: &[(&str, &str)]| {
        let pairs: Vec<(String, String)> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        HubSettings::from_variables(&|name| {
            pairs
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        })
    };

    let plain = from(&[("HOME", "/home/me")]).unwrap();
    let set = from(&[
        ("HOME", "/home/me"),
        ("HF_HOME", folder),
        ("HF_ENDPOINT", "https://mirror.example/"),
        ("HF_HUB_OFFLINE", "1"),
    ])
    .unwrap();
    let overridden = from(&[
        ("HF_HOME", folder),
        ("HF_HUB_CACHE", "/big"),
        ("HF_TOKEN", "given"),
    ])
    .unwrap();

    assert_eq!(plain.endpoint, "https://huggingface.co");
    assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
    assert!(!plain.offline);
    assert_eq!(set.endpoint, "https://mirror.example");
    assert_eq!(
        (set.cache, set.token.as_deref(), set.offline),
        (home.path().join("hub"), Some("from-a-file"), true)
    );
    assert_eq!(
        (overridden.cache, overridden.token.as_deref()),
        (PathBuf::from("/big"), Some("given"))
    );
    assert!(from(&[]).is_err());
}
