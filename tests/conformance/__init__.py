"""What every engine must do: one suite over a factory. `docs/edge-rules.md` names the test that holds each rule."""
