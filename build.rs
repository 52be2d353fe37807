//! The schema that cargo-pgrx reads lives in a section of the library that the linker would drop as unused.
//! A link argument of the cdylib alone keeps it, so that the tests and the library share one build (CONTRIBUTING.md).
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("macos") {
        println!("cargo::rustc-link-arg-cdylib=-Wl,--no-gc-sections");
    }
}
