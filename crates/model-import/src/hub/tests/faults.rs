//! A hub that breaks off, redirects, lies, or is not there.

use super::*;

#[test]
fn a_download_that_breaks_goes_on_where_it_was() {
    for (fault, ranges) in [(Fault::CutsOnce, true), (Fault::CutsOnceAndIgnoresRanges, false)] {
        let (home, hub) = (Home::new(), faulty(fault).serve());

        home.fetch(&hub).unwrap();

        assert_eq!(home.read("model.safetensors"), weights(), "{fault:?}");
        let asked = hub.asked_storage.lock().unwrap();
        assert_eq!(asked.len(), 2, "{fault:?}: {asked:?}");
        assert!(asked[1].from > 0, "{fault:?}: {asked:?}");
        assert!(ranges || fault == Fault::CutsOnceAndIgnoresRanges);
    }
}

#[test]
fn a_busy_hub_is_asked_again() {
    let (home, hub) = (Home::new(), faulty(Fault::Busy).serve());

    home.fetch(&hub).unwrap();

    assert_eq!(home.read("model.safetensors"), weights());
}

#[test]
fn a_redirection_to_a_path_of_the_same_server_is_followed() {
    let (home, hub) = (Home::new(), faulty(Fault::RelativeRedirect).serve());

    home.fetch(&hub).unwrap();

    assert_eq!(home.read("model.safetensors"), weights());
    assert!(hub.asked_storage.lock().unwrap().is_empty());
}

#[test]
fn what_a_server_gets_wrong_is_an_error_that_says_so() {
    let cases = [
        (Fault::EndsEarly, "the range `bytes "),
        (Fault::SendsMore, "the hub's list of files says"),
        (Fault::OtherBytes, "has the digest"),
        (Fault::OtherLinkedSize, "size `200001`, expected `200000`"),
        (Fault::OtherCommit, "commit `ffff"),
        (Fault::Circle, "more than 5 redirections"),
        (Fault::Nowhere, "a redirection to nowhere"),
        (Fault::NoJson, "not the expected JSON"),
    ];
    for (fault, expected) in cases {
        let message = Home::new().refused(faulty(fault));

        assert!(message.contains(expected), "{fault:?}: {message}");
    }
}

#[test]
fn bytes_that_do_not_fit_are_thrown_away_and_fetched_anew() {
    let home = Home::new();
    home.refused(faulty(Fault::OtherBytes));

    home.fetch(&model().serve()).unwrap();

    assert_eq!(home.read("model.safetensors"), weights());
}

#[test]
fn a_list_of_files_that_lies_is_refused() {
    let change = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut model = model();
        let mut listing = model.true_listing();
        change(&mut listing);
        model.listing = Some(listing);
        Home::new().refused(model)
    };
    let weights_entry = |listing: &mut serde_json::Value, value: serde_json::Value| {
        let files = listing["siblings"].as_array_mut().unwrap();
        files.retain(|file| file["rfilename"] != "model.safetensors");
        files.push(value);
    };

    let commit = change(&|listing| listing["sha"] = json!("../../../up"));
    let size = change(&|listing| {
        let lfs = json!({"sha256": "0".repeat(64), "size": 1_u64 << 50});
        weights_entry(listing, json!({"rfilename": "model.safetensors", "lfs": lfs}));
    });
    let digest = change(&|listing| {
        let lfs = json!({"sha256": "../../../../up", "size": 5});
        weights_entry(listing, json!({"rfilename": "model.safetensors", "lfs": lfs}));
    });

    assert!(
        commit.contains("`sha`") && commit.contains("../../../up"),
        "{commit}"
    );
    assert!(size.contains("at most"), "{size}");
    assert!(digest.contains("model.safetensors"), "{digest}");
}

#[test]
fn without_a_network_the_error_says_what_to_do() {
    let home = Home::new();

    let error = home
        .fetch_with(REPO, &home.settings("http://127.0.0.1:9"))
        .unwrap_err()
        .to_string();

    assert!(
        error.contains("http://127.0.0.1:9") && error.contains("HF_ENDPOINT"),
        "{error}"
    );
    assert!(error.contains("HF_HUB_OFFLINE"), "{error}");
}

#[test]
fn offline_the_cache_serves_what_it_has_and_names_what_it_lacks() {
    let (home, hub) = (
        Home::new(),
        sharded(["model-1.safetensors", "model-2.safetensors"]).serve(),
    );
    let offline = HubSettings {
        offline: true,
        ..home.settings("http://127.0.0.1:9")
    };

    let before = home.fetch_with(REPO, &offline).unwrap_err().to_string();
    home.fetch(&hub).unwrap();
    std::fs::remove_dir_all(home.models()).unwrap();
    home.fetch_with(REPO, &offline).unwrap();
    let whole = [home.read("model-1.safetensors"), home.read("model-2.safetensors")].concat();
    std::fs::remove_dir_all(home.models()).unwrap();
    let snapshot = home
        .0
        .path()
        .join("hub/models--some-org--tiny-model/snapshots")
        .join(COMMIT);
    std::fs::remove_file(snapshot.join("model-2.safetensors")).unwrap();
    let after = home.fetch_with(REPO, &offline).unwrap_err().to_string();

    assert!(
        before.contains("HF_HUB_OFFLINE") && before.contains("the revision"),
        "{before}"
    );
    assert_eq!(whole, weights());
    assert!(after.contains("`model-2.safetensors`"), "{after}");
}
