//! Users' YAML: every text is read or refused, every refusal has a place in the text, and every policy is translated.

#![no_main]

use libfuzzer_sys::fuzz_target;
use manifest::{Object, policy};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = manifest::parse("fuzz.yaml", text);
    // YAML ends a line at either of them (1.2.2, 5.4), so this is the most there can be, and one for the end.
    let lines = text.matches(['\n', '\r']).count() + 2;
    for problem in &parsed.problems {
        assert!(problem.line as usize <= lines, "line {} of {lines}: {}", problem.line, problem.message);
    }
    for document in &parsed.documents {
        if let Object::AuthorizationPolicy(authorization) = &document.object {
            policy::translate(authorization, &manifest::kinds::MeshSettings::default());
        }
    }
});
