//! The vault: a crash loses the keys in memory and nothing else; who waits hears so in time.

use portcullis_actors::vault::VaultHandle;
use portcullis_core::audit::Entry;
use portcullis_core::seal::Secret;
use portcullis_core::vault::Asked;

use super::real::{Ground, Trip, in_time};

async fn set(vault: &VaultHandle, name: &str, value: &[u8]) -> Result<u64, &'static str> {
    let value = Secret::new(value.to_vec());
    let set = in_time(vault.set(Entry::new("test"), name, value)).await;
    set.map(|meta| meta.version).map_err(|e| e.code())
}

async fn value(vault: &VaultHandle, name: &str) -> Result<Vec<u8>, &'static str> {
    loop {
        match in_time(vault.reveal(name, None, Asked::by_gateway("test"))).await {
            Ok((_, secret)) => return Ok(secret.expose().to_vec()),
            // scrypt takes what it takes.
            Err(refusal) if refusal.code() == "UNSEALING" => {}
            Err(refusal) => return Err(refusal.code()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vault_that_crashes_while_it_sets_opens_again_with_what_was_acknowledged() {
    let (mut ground, trip) = (Ground::new(), Trip::default());
    let vault = ground.vault(&trip);
    let house = ground.start().await;
    assert_eq!(value(&vault, "A").await, Err("VAULT_NOT_FOUND"));
    assert_eq!(set(&vault, "A", b"a").await, Ok(1));

    trip.arm();
    assert_eq!(set(&vault, "B", b"b").await, Err("ROOM_DOWN"));
    house.recovered("vault", 1).await;
    assert_eq!(value(&vault, "A").await, Ok(b"a".to_vec()));
    assert_eq!(value(&vault, "B").await, Err("VAULT_NOT_FOUND"));

    // A row that is not as it left it: it says so, writes nothing, and reads everything again.
    house.touch("vault", "A").await;
    assert_eq!(set(&vault, "A", b"c").await, Err("ROOM_DOWN"));
    house.recovered("vault", 2).await;
    assert_eq!(value(&vault, "A").await, Ok(b"a".to_vec()));
    assert_eq!(set(&vault, "A", b"d").await, Ok(2));
    assert_eq!(value(&vault, "A").await, Ok(b"d".to_vec()));
    house.end().await;
}
