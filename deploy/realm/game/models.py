from django.db import models


class Guild(models.Model):
    name = models.CharField(max_length=80, unique=True)
    motto = models.CharField(max_length=200, blank=True)
    founded_at = models.DateTimeField()

    def __str__(self):
        return self.name


class Player(models.Model):
    name = models.CharField(max_length=80, unique=True)
    guild = models.ForeignKey(Guild, on_delete=models.PROTECT, related_name="members")
    level = models.PositiveIntegerField(default=1)
    score = models.PositiveIntegerField(default=0)
    gold = models.PositiveIntegerField(default=0)
    joined_at = models.DateTimeField()

    def __str__(self):
        return self.name


class Item(models.Model):
    code = models.CharField(max_length=20)
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=20)
    rarity = models.CharField(max_length=20)
    power = models.PositiveIntegerField(default=0)

    def __str__(self):
        return self.name


class InventoryEntry(models.Model):
    player = models.ForeignKey(Player, on_delete=models.CASCADE, related_name="inventory")
    item = models.ForeignKey(Item, on_delete=models.PROTECT, related_name="carried_as")
    quantity = models.PositiveIntegerField(default=1)

    class Meta:
        verbose_name_plural = "inventory entries"
        constraints = [models.UniqueConstraint(fields=["player", "item"], name="one_entry_per_player_and_item")]

    def __str__(self):
        return f"{self.quantity} × item {self.item_id} of player {self.player_id}"


class Trade(models.Model):
    # Chosen by the client. Not unique: a request that arrives twice is stored twice, and shows.
    reference = models.CharField(max_length=80)
    seller = models.ForeignKey(Player, on_delete=models.CASCADE, related_name="sales")
    buyer = models.ForeignKey(Player, on_delete=models.CASCADE, related_name="purchases")
    item = models.ForeignKey(Item, on_delete=models.PROTECT, related_name="trades")
    gold = models.PositiveIntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return self.reference
