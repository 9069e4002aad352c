//! Lets doc tests find libtorch: rustdoc runs them from a temporary folder that no rpath reaches, but cargo
//! adds native search paths inside the target folder to the loader's path, so a link is placed there.

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let (Some(torch), Some(out)) = (std::env::var_os("LIBTORCH"), std::env::var_os("OUT_DIR")) else {
        return;
    };
    let link = std::path::Path::new(&out).join("libtorch");
    let _ = std::fs::remove_file(&link);
    if std::os::unix::fs::symlink(std::path::Path::new(&torch).join("lib"), &link).is_ok() {
        println!("cargo:rustc-link-search=native={}", link.display());
    }
}
