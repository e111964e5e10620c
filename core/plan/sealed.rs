//! Plans as the audit log keeps them: what ran may hold secrets in its arguments, so who reads the log's files reads none.

use super::ExecPlan;
use crate::ids::Hash32;
use crate::seal::{Key, NONCE, Secret};

const DOMAIN: &[u8] = b"portcullis-logged-plan-v1";
const SALT: &[u8] = b"portcullis/plan/v1";

/// Seals plans for the log: AES-256-GCM under a key for each plan, HKDF-SHA256 of the machine's and the plan's hash. A plan has
/// a random nonce in it, so no two have one hash, and the cipher's nonce can be fixed: the same plan twice gives the same bytes.
#[derive(Clone)]
pub struct PlanKey(Key);

impl PlanKey {
    /// The machine's ([`crate::identity::Identity::logged_plans`]).
    pub const fn new(key: Key) -> Self {
        Self(key)
    }

    /// Seals a plan.
    pub fn seal(&self, plan: &ExecPlan) -> Vec<u8> {
        let hash = plan.plan_hash();
        let plain = Secret::new(plan.to_json());
        self.of(&hash)
            .seal(&[0; NONCE], &[DOMAIN, &hash.0], plain.expose())
    }

    /// Opens what was sealed of the plan with this hash; `None`: it is not that plan.
    pub fn open(&self, hash: &Hash32, sealed: &[u8]) -> Option<ExecPlan> {
        let plain = self
            .of(hash)
            .open(&[0; NONCE], &[DOMAIN, &hash.0], sealed)?;
        let plan = ExecPlan::from_json(plain.expose()).ok()?;
        (plan.plan_hash() == *hash).then_some(plan)
    }

    fn of(&self, hash: &Hash32) -> Key {
        let hex = crate::encoding::hex(&hash.0);
        self.0
            .derive(SALT, "portcullis/plan/one/v1", hex.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::host_plan;
    use super::*;

    #[test]
    fn a_plan_opens_under_its_own_hash_and_machine_alone() {
        let (key, other) = (
            PlanKey::new(Key::new([1; 32])),
            PlanKey::new(Key::new([2; 32])),
        );
        let plan = host_plan(&["/usr/bin/id", "--of", "somebody"]);
        let hash = plan.plan_hash();
        let sealed = key.seal(&plan);
        assert_eq!(key.open(&hash, &sealed), Some(plan.clone()));
        assert_eq!(key.seal(&plan), sealed);
        let text = plan.argv.join(" ");
        assert!(!String::from_utf8_lossy(&sealed).contains(&text));
        assert_eq!(other.open(&hash, &sealed), None);
        assert_eq!(key.open(&Hash32([0; 32]), &sealed), None);
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(key.open(&hash, &flipped), None);
            assert_eq!(key.open(&hash, &sealed[..at]), None);
        }
        // Another plan has another key: the fixed nonce never comes twice under one.
        let mut next = plan;
        next.argv.push("more".to_owned());
        let sealed_next = key.seal(&next);
        assert_ne!(sealed_next[..16], sealed[..16]);
        assert_eq!(key.open(&hash, &sealed_next), None);
    }
}
