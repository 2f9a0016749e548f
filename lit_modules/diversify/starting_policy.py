"""The policy that a training starts from, out of the settings of a module."""

from dataclasses import replace

from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.diversify.policy import Policy


def starting_policy(
    policy: CausalLMPolicyConfig | Policy | None, init_from: str | None, vocab_size: int | None
) -> Policy:
    """Return a complete policy as it is, or build one from the settings of a language model.

    Args:
        policy: Settings, or a policy; None: the whole model of `init_from`.
        init_from: Exported folder, or an experiment's config.
        vocab_size: Tokens of the data's tokenizer.

    Raises:
        ValueError: on settings that contradict each other, or name no model.
    """
    if isinstance(policy, Policy):
        if init_from is not None:
            raise ValueError(
                "model.init_args.init_from is set, but model.init_args.policy is a complete policy "
                "already: leave one of them out"
            )
        return policy
    config = policy or CausalLMPolicyConfig()
    if init_from is not None:
        if config.init_from is not None:
            raise ValueError(
                "both model.init_args.init_from and model.init_args.policy.init_from are set: "
                "leave the second out"
            )
        config = replace(config, init_from=init_from)
    if config.init_from is None and config.base is None:
        raise ValueError(
            "there is no model to start from: set model.init_args.init_from (an exported folder, "
            "or an experiment's .yaml), or model.init_args.policy.base"
        )
    if vocab_size is None:
        raise ValueError(
            "a language model policy needs data with a tokenizer, such as "
            "triptych.datamodules.diversify.chat_prompts.ChatPrompts"
        )
    return build_policy(config, vocab_size)
