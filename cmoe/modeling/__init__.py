"""The network: a frozen vision-language model that grows experts, routers and a locator."""
